//! Attention in three operations: scores, probabilities, sums over values.

use firstdiff_model::ops::{AttnHeads, AttnProbs, AttnScores};
use firstdiff_tensor::{Real, Tensor};
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
                sum += *p;
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
    // The keys that attention saw are the last of those stored.
    let stored = v.len() / (op.kv_heads * d);
    let v = &v[stored.saturating_sub(keys) * op.kv_heads * d..];
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

/// Spreads pieces over threads unless there is too little to do.
fn for_each<P: Send>(pieces: Vec<P>, work: usize, f: impl Fn(P) + Sync + Send) {
    if work < 1 << 18 {
        pieces.into_iter().for_each(f);
    } else {
        pieces.into_par_iter().for_each(f);
    }
}
