use firstdiff_model::ops::{NormForm, RmsNorm};
use firstdiff_tensor::Real;
use rayon::prelude::*;

use super::Rounding;

/// Root-mean-square norm over runs of `w.len()` channels. Engines round the sum of squares, its
/// reciprocal root, and, in most families before the weight is applied, the normalised value.
pub(crate) fn rms_norm<T: Real>(x: &[T], w: &[T], op: &RmsNorm, rounding: Rounding) -> Vec<T> {
    let dim = w.len();
    let mut out = vec![T::ZERO; x.len()];
    let (inner, sum, root) = (rounding.site(2), rounding.site(3), rounding.site(4));
    out.par_chunks_mut(dim).zip(x.par_chunks(dim)).enumerate().with_min_len(16).for_each(
        |(row, (out, x))| {
            let mean = rounding.mean_square(x, row);
            let scale = T::from_f64(rounding.lean(2.0, 0) * root.reciprocal_root(mean + op.eps, row));
            for (i, ((out, &x), &w)) in out.iter_mut().zip(x).zip(w).enumerate() {
                let (x, at) = (x * scale, row * dim + i);
                *out = match op.form {
                    NormForm::Stored => inner.store(x, at) * w,
                    // What divides by a stored root stores the quotient as well.
                    NormForm::Once if rounding.stores_root() => inner.store(x, at) * w,
                    NormForm::OnePlus if rounding.stores_root() => inner.store(x, at) * (T::ONE + w),
                    // Multiplied in the format of sums, where only the product's own rounding is left.
                    NormForm::Once => x * w * T::from_f64(inner.factor(1.0, at)),
                    NormForm::OnePlus => {
                        let w = (T::ONE + w) * T::from_f64(sum.factor(1.0, i));
                        x * w * T::from_f64(inner.factor(1.0, at))
                    }
                };
            }
        },
    );
    out
}
