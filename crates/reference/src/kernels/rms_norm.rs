use firstdiff_tensor::Real;
use rayon::prelude::*;

use super::Rounding;

/// Root-mean-square norm over runs of `w.len()` channels. Engines round the sum of squares, its
/// reciprocal root, and, before the weight is applied, the normalised value.
pub(crate) fn rms_norm<T: Real>(x: &[T], w: &[T], eps: f64, rounding: Rounding) -> Vec<T> {
    let dim = w.len();
    let mut out = vec![T::ZERO; x.len()];
    let inner = rounding.site(2);
    out.par_chunks_mut(dim).zip(x.par_chunks(dim)).enumerate().with_min_len(16).for_each(
        |(row, (out, x))| {
            let mean = x.iter().map(|&x| x * x).sum::<T>().to_f64() / dim as f64;
            let mean = mean * rounding.positive_sum(dim, row);
            let scale = T::from_f64(rounding.lean(2.0, 0) / (mean + eps).sqrt());
            for (i, ((out, &x), &w)) in out.iter_mut().zip(x).zip(w).enumerate() {
                *out = inner.store(x * scale, row * dim + i) * w;
            }
        },
    );
    out
}
