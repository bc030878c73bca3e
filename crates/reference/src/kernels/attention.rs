//! Attention in three operations: scores, probabilities, sums over values.

use firstdiff_model::ops::{AttnHeads, AttnProbs, AttnScores};
use firstdiff_tensor::{Float, Real, Tensor};
use rayon::prelude::*;

use super::Rounding;
use crate::keys::KeyLabel;
use crate::matmul::{Matrix, product};

/// Rows of one piece of work.
const BAND: usize = 64;

/// `scale * q k^T` for every head, `[H, T, K]`, from `q` `[T, H, D]` and `k` `[K, Hkv, D]`.
pub(crate) fn scores<T: Real>(q: &[T], k: &[T], op: &AttnScores, scale: f64) -> Tensor<T> {
    let (d, group) = (op.dim, op.heads / op.kv_heads);
    let (rows, keys) = (q.len() / (op.heads * d), k.len() / (op.kv_heads * d));
    let mut out = Tensor::zeros([op.heads, rows, keys]);
    if keys == 0 || rows == 0 {
        return out;
    }
    let bands = rows.div_ceil(BAND);
    let mut pieces: Vec<(usize, usize, &mut [T])> = Vec::with_capacity(op.heads * bands);
    for (head, out) in out.data_mut().chunks_mut(rows * keys).enumerate() {
        pieces.extend(out.chunks_mut(BAND * keys).enumerate().map(|(band, out)| (head, band, out)));
    }
    let work = rows * keys * d * op.heads;
    for_each(pieces, work, |(head, band, out)| {
        let n = out.len() / keys;
        let q = Matrix {
            data: &q[head * d..],
            rows: rows - band * BAND,
            cols: d,
            row_stride: op.heads * d,
            col_stride: 1,
        };
        let q = Matrix { data: &q.data[band * BAND * q.row_stride..], rows: n, ..q };
        let k = Matrix {
            data: &k[head / group * d..],
            rows: keys,
            cols: d,
            row_stride: op.kv_heads * d,
            col_stride: 1,
        };
        product(out, keys, q, k.transposed(), T::from_f64(scale));
    });
    out
}

/// Causal softmax over the last axis. Subtracting the largest score rounds, so an exponential errs
/// in proportion to its argument; its denominator is a sum of positive terms.
pub(crate) fn probabilities<T: Real>(
    scores: &Tensor<T>,
    op: &AttnProbs,
    rows: &[KeyLabel],
    keys: &[KeyLabel],
    rounding: Rounding,
) -> Vec<T> {
    let (n, width) = (rows.len(), keys.len());
    let mut out = vec![T::ZERO; scores.len()];
    if n == 0 || width == 0 {
        return out;
    }
    let visible = |row: &KeyLabel, key: &KeyLabel| {
        key.sequence == row.sequence
            && key.position <= row.position
            && op.window.is_none_or(|w| ((row.position - key.position) as usize) < w)
    };
    let exponent = rounding.site(1);
    let lines = out.par_chunks_mut(width).zip(scores.data().par_chunks(width)).enumerate();
    lines.with_min_len(4).for_each(|(line, (out, scores))| {
        let row = &rows[line % n];
        let mut max = T::NEG_INFINITY;
        for (s, key) in scores.iter().zip(keys) {
            if visible(row, key) && *s > max {
                max = *s;
            }
        }
        let mut sum = T::ZERO;
        for (i, ((p, s), key)) in out.iter_mut().zip(scores).zip(keys).enumerate() {
            if visible(row, key) {
                let x = *s - max;
                *p = x.exp();
                if !rounding.is_exact() {
                    let argument = exponent.factor(x.to_f64().abs(), line * width + i);
                    *p *= T::from_f64(argument * exponent.lean(2.0, 0));
                }
                sum = rounding.add(sum, *p);
            }
        }
        let scale = T::from_f64(rounding.positive_sum(width, line) / sum.to_f64());
        out.iter_mut().for_each(|p| *p *= scale);
    });
    out
}

/// `probabilities x values` for every head, `[T, H, D]`.
pub(crate) fn heads<T: Real>(probs: &Tensor<T>, v: &[T], op: &AttnHeads) -> Vec<T> {
    let (d, group) = (op.dim, op.heads / op.kv_heads);
    let (rows, keys) = (probs.shape()[1], probs.shape()[2]);
    let v = seen(v, keys, op);
    let mut by_head = vec![T::ZERO; op.heads * rows * d];
    let mut pieces = Vec::new();
    for (head, out) in by_head.chunks_mut((rows * d).max(1)).enumerate() {
        pieces.extend(out.chunks_mut(BAND * d).enumerate().map(|(band, out)| (head, band, out)));
    }
    let work = rows * keys * d * op.heads;
    for_each(pieces, work, |(head, band, out)| {
        let n = out.len() / d;
        let p = &probs.data()[(head * rows + band * BAND) * keys..][..n * keys];
        let v = Matrix {
            data: &v[head / group * d..],
            rows: keys,
            cols: d,
            row_stride: op.kv_heads * d,
            col_stride: 1,
        };
        product(out, d, Matrix::row_major(p, n, keys), v, T::ONE);
    });
    let mut out = vec![T::ZERO; by_head.len()];
    for (head, values) in by_head.chunks((rows * d).max(1)).enumerate() {
        for (row, values) in values.chunks(d).enumerate() {
            out[(row * op.heads + head) * d..][..d].copy_from_slice(values);
        }
    }
    out
}

/// [`heads`] as sums in `format` of one product after another, each partial sum rounded to nearest.
///
/// Weights are positive and few of them large: what is added to a sum that holds most of its value is lost where it is less
/// than half of that one's last place. Values of a channel often have one sign, so such losses add up, over all tokens
/// of a head.
pub(crate) fn heads_in_order<T: Real>(probs: &Tensor<T>, v: &[T], op: &AttnHeads, format: Float) -> Vec<T> {
    let (d, group) = (op.dim, op.heads / op.kv_heads);
    let (rows, keys) = (probs.shape()[1], probs.shape()[2]);
    let v = seen(v, keys, op);
    let mut out = vec![T::ZERO; rows * op.heads * d];
    out.par_chunks_mut(d).enumerate().with_min_len(4).for_each(|(i, out)| {
        let (row, head) = (i / op.heads, i % op.heads);
        let weights = &probs.data()[(head * rows + row) * keys..][..keys];
        let mut sums = vec![0.0; d];
        for (key, p) in weights.iter().map(|p| p.to_f64()).enumerate().filter(|(_, p)| *p != 0.0) {
            let values = &v[(key * op.kv_heads + head / group) * d..][..d];
            let terms = sums.iter_mut().zip(values);
            match format {
                // The common one, in a loop that compilers turn into SIMD.
                Float::F32 => terms.for_each(|(y, v)| *y = f64::from((*y + p * v.to_f64()) as f32)),
                _ => terms.for_each(|(y, v)| *y = format.round(*y + p * v.to_f64())),
            }
        }
        out.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::from_f64(sum));
    });
    out
}

/// The values of the keys that attention saw: the last of those stored.
fn seen<'v, T>(v: &'v [T], keys: usize, op: &AttnHeads) -> &'v [T] {
    let row = op.kv_heads * op.dim;
    &v[(v.len() / row).saturating_sub(keys) * row..]
}

/// Spreads pieces over threads unless there is too little to do.
fn for_each<P: Send>(pieces: Vec<P>, work: usize, f: impl Fn(P) + Sync + Send) {
    if work < 1 << 18 {
        pieces.into_iter().for_each(f);
    } else {
        pieces.into_par_iter().for_each(f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_in_order_loses_what_is_less_than_half_of_its_last_place() {
        let op = AttnHeads { heads: 2, kv_heads: 1, dim: 2 };
        // The first key weighs one, a thousand others less than f32 sees beside it; the second head has them first.
        let small = Float::F32.unit_roundoff() / 2.0;
        let mut weights = vec![1.0];
        weights.extend(vec![small; 1000]);
        let reversed: Vec<f64> = weights.iter().rev().copied().collect();
        let probs = Tensor::new([2, 1, 1001], [weights, reversed].concat()).unwrap();
        // Rows that are stored but not seen come first.
        let v: Vec<f64> = [[7.0; 4].as_slice(), &[3.0, -1.0].repeat(1001)].concat();
        let sum = 1.0 + 1000.0 * small;
        for (x, wanted) in heads(&probs, &v, &op).iter().zip([3.0 * sum, -sum, 3.0 * sum, -sum]) {
            assert!((x - wanted).abs() < 1e-12, "{x} {wanted}");
        }
        let in_f32 = heads_in_order(&probs, &v, &op, Float::F32);
        assert_eq!(in_f32[..2], [3.0, -1.0]);
        assert!((in_f32[3] + sum).abs() < 1e-7 && in_f32[3] != -1.0, "{}", in_f32[3]);
        assert_eq!(heads_in_order(&probs, &v, &op, Float::F16)[..2], [3.0, -1.0]);
    }
}
