//! Caches whose rows lie in another order than they were written in, with nothing in the trace that says so: rings, sinks
//! and pages. Read as the last keys, they would look wrong.

use std::collections::{BTreeMap, BTreeSet};

use firstdiff_model::{OpKind, Program};
use firstdiff_reference::StepInput;
use firstdiff_tensor::Tensor;
use firstdiff_trace::{Trace, tap};

use crate::Error;
use crate::align::Alignment;

/// How far a cached row may lie from the row that was written, relative to it: the widest rounding of an 8-bit float.
/// Keys of different tokens lie about as far apart as they are long.
const ROUNDED: f64 = 0.125;
/// Rows of a prompt that are compared at most: a ring longer than this is not looked for.
const MOST: usize = 1 << 14;

/// Steps and layers whose recorded cache has fewer rows than keys were written, all of them known rows, and not the last
/// ones in their order.
pub(crate) fn out_of_order(
    trace: &Trace,
    program: &Program,
    alignment: &Alignment,
    steps: &[StepInput],
) -> Result<BTreeSet<(usize, usize)>, Error> {
    let mut found = BTreeSet::new();
    for (op, cache) in program.ops.iter().enumerate() {
        let (OpKind::Cache(_), (Some(layer), _)) = (&cache.kind, tap::split(&cache.tap)) else { continue };
        let Some(source) = cache.inputs.first().map(|v| v.0) else { continue };
        let fewer = |step: &usize| {
            let held = alignment.placements[*step][op].as_ref().map(|p| p.rows());
            let written: usize = steps[..=*step].iter().map(|s| s.token_ids.len()).sum();
            held.is_some_and(|held| held < written && held <= MOST && written <= MOST)
                && steps[*step].keys.of(Some(layer)).is_none()
        };
        let suspects: Vec<usize> = (0..steps.len()).filter(fewer).collect();
        let (Some(&last), false) = (suspects.last(), suspects.is_empty()) else { continue };
        // The rows written so far, by place; a step whose rows are not recorded ends what is known.
        let mut written: BTreeMap<(i64, u32), Vec<f64>> = BTreeMap::new();
        for (step, input) in steps.iter().enumerate().take(last + 1) {
            let name = |op: usize| program.ops[op].tap.as_str();
            let recorded = |op: usize| alignment.read::<f64>(step, op, name(op), &trace.steps[step]);
            let Some(rows) = recorded(source)? else { break };
            for (row, place) in
                input.sequence.iter().copied().zip(input.positions.iter().copied()).enumerate()
            {
                if row < rows.rows() {
                    written.insert(place, rows.row(row).to_vec());
                }
            }
            let only = input.sequence.first().filter(|q| input.sequence.iter().all(|r| r == *q));
            if let (true, Some(&sequence)) = (suspects.contains(&step), only)
                && let Some(cached) = recorded(op)?
            {
                let of: Vec<&Vec<f64>> =
                    written.range((sequence, 0)..=(sequence, u32::MAX)).map(|(_, row)| row).collect();
                if is_reordered(&cached, &of) {
                    found.insert((step, layer));
                }
            }
        }
    }
    Ok(found)
}

/// Whether each row of a cache is one of those written, each another one, and they are not the last ones in order.
fn is_reordered(cached: &Tensor<f64>, written: &[&Vec<f64>]) -> bool {
    let near = |a: &[f64], b: &[f64]| {
        let (mut error, mut norm) = (0.0, 0.0);
        for (x, y) in a.iter().zip(b) {
            error += (x - y) * (x - y);
            norm += y * y;
        }
        error <= ROUNDED * ROUNDED * norm && norm > 0.0
    };
    let rows = cached.rows();
    let Some(skip) = written.len().checked_sub(rows) else { return false };
    if (0..rows).all(|i| near(cached.row(i), written[skip + i])) {
        return false;
    }
    let mut used = vec![false; written.len()];
    (0..rows).all(|i| {
        let same: Vec<usize> = (0..written.len()).filter(|&w| near(cached.row(i), written[w])).collect();
        // Tokens that are written twice with the same key, as values often are, may stand for each other.
        let free = same.into_iter().find(|&w| !used[w]);
        free.is_some_and(|w| !std::mem::replace(&mut used[w], true))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<f64>> {
        (0..6).map(|i| (0..8).map(|j| f64::from((i * 37 + j * 11) % 17) - 8.0).collect()).collect()
    }

    fn cached(order: &[usize], change: f64) -> Tensor<f64> {
        let data =
            order.iter().flat_map(|&i| rows()[i].iter().map(|x| x * change).collect::<Vec<_>>()).collect();
        Tensor::new([order.len(), 8], data).unwrap()
    }

    fn reordered(order: &[usize], change: f64) -> bool {
        let rows = rows();
        is_reordered(&cached(order, change), &rows.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_last_rows_in_order_are_not_reordered_and_rings_are() {
        assert!(!reordered(&[2, 3, 4, 5], 1.05));
        assert!(reordered(&[4, 5, 2, 3], 1.05));
        assert!(reordered(&[0, 1, 4, 5], 1.0), "sinks are the first ones");
    }

    #[test]
    fn rows_that_nobody_wrote_or_that_come_twice_are_errors_of_the_cache() {
        assert!(!reordered(&[4, 5, 2, 3], 1.5));
        assert!(!reordered(&[5, 5, 2, 3], 1.0));
    }
}
