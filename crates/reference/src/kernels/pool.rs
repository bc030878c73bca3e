use firstdiff_model::ops::Pool;
use firstdiff_tensor::{Real, Tensor};

use super::Rounding;
use crate::keys::Entry;

/// The entries that a step completes. `stored` is the number of rows that the entries count in; the
/// tensors hold the last of them. Weights are a softmax in the format of running sums, stored before
/// they multiply; products are stored before they are summed.
pub(crate) fn pool<T: Real>(
    values: &Tensor<T>,
    gates: &Tensor<T>,
    op: &Pool,
    ape: &[T],
    (entries, stored): (&[Entry], usize),
    r: Rounding,
) -> Vec<T> {
    let (dim, width) = (op.dim, op.width());
    let mut out = Vec::with_capacity(entries.len() * dim);
    let row = |t: &Tensor<T>, row: usize| Some(row.checked_sub(stored - t.rows().min(stored))? * width);
    for (number, entry) in entries.iter().enumerate() {
        // The block before with its first channels, this one with its last.
        let own = entry.rows.iter().enumerate().map(|(j, &row)| (j, row, width - dim));
        let before: &[usize] = if op.overlap { &entry.before } else { &[] };
        let before = before.iter().enumerate().map(|(j, &row)| (j, row, 0));
        let items: Vec<(usize, usize, usize)> = before
            .chain(own)
            .filter_map(|(j, at, first)| {
                Some((j * width + first, row(values, at)? + first, row(gates, at)? + first))
            })
            .collect();
        for c in 0..dim {
            let at = |i: usize| (number * dim + c) * 2 * op.ratio + i;
            let gate = |i: usize, &(ape_at, _, z): &(usize, usize, usize)| {
                r.site(1).hold(gates.data()[z + c].to_f64() + ape[ape_at + c].to_f64(), at(i))
            };
            let gates: Vec<f64> = items.iter().enumerate().map(|(i, item)| gate(i, item)).collect();
            let max = gates.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> = gates
                .iter()
                .enumerate()
                .map(|(i, g)| (g - max).exp() * r.site(2).factor((g - max).abs() + 2.0, at(i)))
                .collect();
            let total = exponentials.iter().sum::<f64>() * r.positive_sum(items.len(), number * dim + c);
            let mut sum = 0.0;
            for (i, (e, &(_, k, _))) in exponentials.iter().zip(&items).enumerate() {
                let weight = r.site(3).store(T::from_f64(e / total), at(i));
                let product = r.site(4).store(weight * values.data()[k + c], at(i));
                sum = r.site(5).hold(sum + product.to_f64(), at(i));
            }
            out.push(T::from_f64(sum));
        }
    }
    out
}
