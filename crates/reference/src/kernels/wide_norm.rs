use firstdiff_tensor::Real;

use super::Rounding;

/// Root-mean-square norm over runs of `dim` channels, weighted in the format of running sums and rounded
/// once; without a weight the reciprocal root is stored before it multiplies.
pub(crate) fn wide_norm<T: Real>(x: &[T], w: Option<&[T]>, dim: usize, eps: f64, r: Rounding) -> Vec<T> {
    let mut out = vec![T::ZERO; x.len()];
    let inner = r.site(2);
    for (row, (out, x)) in out.chunks_mut(dim).zip(x.chunks(dim)).enumerate() {
        let mean = r.mean_square(x, row);
        let scale = T::from_f64(r.lean(2.0, 0) / (mean + eps).sqrt());
        match w {
            None => {
                let scale = inner.store(scale, row);
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = x * scale);
            }
            Some(w) => {
                for (i, ((out, &x), &w)) in out.iter_mut().zip(x).zip(w).enumerate() {
                    *out = T::from_f64(inner.hold((x * scale).to_f64(), row * dim + i)) * w;
                }
            }
        }
    }
    out
}
