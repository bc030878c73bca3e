//! Probabilities whose weights are rounded before they are divided by their sum.
//!
//! Flash attention on tensor cores multiplies values with `w (1 + e)`, `w` the exponential of a score less the
//! largest one, and divides by the sum of these: probability `p` becomes `p (1 + e - sum of p e)`. The last term is
//! one factor for all of a row, drawn by its largest weights.

use firstdiff_tensor::{Real, Tensor};
use rayon::prelude::*;

use super::{Damping, Noise};

/// Adds to the noise of probabilities that are stored in a format of `u` what such weights do: to every element the
/// variance of its own rounding and of the row's factor, and to every row that factor's. A rounding at random errs by
/// `f (1 - f) ulp^2`, at an unknown place by `ulp^2 / 6` on average, at most `2/3 u^2` of the square; the factor is taken
/// at its bound, because a row draws that of its largest weight once.
pub(super) fn weights_first<T: Real>(exact: &Tensor<T>, noise: &mut Noise<T>) {
    let width = exact.shape().last().copied().unwrap_or(1).max(1);
    let u = noise.store.unit_roundoff();
    let rows = || exact.data().par_chunks(width).with_min_len(16);
    let factors: Vec<f64> =
        rows().map(|p| u * u * p.iter().map(|p| p.to_f64().powi(2)).sum::<f64>()).collect();
    let variances = noise.variance.par_chunks_mut(width).with_min_len(16);
    variances.zip(rows()).zip(&factors).for_each(|((variance, p), factor)| {
        let each = 2.0 / 3.0 * u * u + factor;
        variance.iter_mut().zip(p).for_each(|(v, p)| *v += each * p.to_f64().powi(2));
    });
    noise.damping = Damping::of(exact, &noise.variance, noise.store);
    let along = |(row, p): (usize, &[T])| -> f64 {
        let of = |(i, p): (usize, &T)| p.to_f64() * noise.direction(row * width + i, p.to_f64());
        p.iter().enumerate().map(of).sum()
    };
    let sums: Vec<f64> = rows().enumerate().map(along).collect();
    noise.factor = sums.iter().zip(factors).map(|(sum, factor)| factor * sum * sum).collect();
}
