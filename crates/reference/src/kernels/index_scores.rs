//! The indexer's scores.

use firstdiff_model::ops::IndexScores;
use firstdiff_tensor::{Float, Real};
use rayon::prelude::*;

use super::sum_variance;

/// A factor of the scores: by the head size and the number of heads.
fn factor(op: &IndexScores) -> f64 {
    (op.dim as f64).powf(-0.5) * (op.heads as f64).powf(-0.5)
}

/// Scores `[T, E]` from queries `[T, H, D]`, weights `[T, H]` and entries `[E, D]`.
pub(crate) fn index_scores<T: Real>(q: &[T], w: &[T], k: &[T], op: &IndexScores) -> Vec<T> {
    each(q, w, k, op, |terms, _| T::from_f64(terms.iter().map(|t| t.0).sum()))
}

/// Variance of the scores when each is computed in `format`: products of queries and entries, each term
/// rounded twice, and the sum over heads.
pub(crate) fn variance<T: Real>(q: &[T], w: &[T], k: &[T], op: &IndexScores, format: Float) -> Vec<f64> {
    let u = format.unit_roundoff();
    each(q, w, k, op, |terms, sum| {
        let dots: f64 = terms.iter().map(|t| t.1).sum();
        let squares: f64 = terms.iter().map(|t| t.0 * t.0).sum();
        // A scale that is no power of two is itself rounded: all terms err alike.
        dots * u * u / 3.0
            + u * u * squares
            + sum_variance(format, op.heads, squares, sum)
            + u * u / 3.0 * sum * sum
    })
}

/// For every token and entry, what `f` makes of the heads' terms: each with the variance, in squared
/// roundoffs thirds, of the product in it.
fn each<T: Real, R: Send>(
    q: &[T],
    w: &[T],
    k: &[T],
    op: &IndexScores,
    f: impl Fn(&[(f64, f64)], f64) -> R + Sync,
) -> Vec<R> {
    let (heads, dim, factor) = (op.heads, op.dim, factor(op));
    let rows = q.par_chunks(heads * dim).zip(w.par_chunks(heads));
    let row = |(q, w): (&[T], &[T])| -> Vec<R> {
        let entry = |k: &[T]| {
            let term = |(q, w): (&[T], &T)| {
                let (mut dot, mut squares) = (0.0, 0.0);
                for (a, b) in q.iter().zip(k) {
                    let product = a.to_f64() * b.to_f64();
                    dot += product;
                    squares += product * product;
                }
                let weight = w.to_f64() * factor;
                let n = dim as f64;
                let spread = (n / 2.0 + 1.0) * squares + n / 3.0 * dot * dot;
                // A product that rounding may bring across zero counts too, with half of its errors.
                let near = !op.relu || dot > 0.0 || dot * dot < 1e-10 * squares;
                let part = if op.relu { dot.max(0.0) } else { dot };
                (weight * part, if near { weight * weight * spread } else { 0.0 })
            };
            let terms: Vec<(f64, f64)> = q.chunks(dim).zip(w).map(term).collect();
            let sum = terms.iter().map(|t| t.0).sum();
            f(&terms, sum)
        };
        k.chunks(dim).map(entry).collect()
    };
    rows.flat_map_iter(row).collect()
}
