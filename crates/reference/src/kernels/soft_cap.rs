use firstdiff_tensor::Real;
use rayon::prelude::*;

use super::Rounding;

/// `cap tanh(x / cap)`; engines store the quotient and the tangent.
pub(crate) fn soft_cap<T: Real>(x: &[T], cap: f64, rounding: Rounding) -> Vec<T> {
    let (quotient, tangent) = (rounding.site(1), rounding.site(2));
    let one = |(i, x): (usize, &T)| {
        let x = quotient.store(T::from_f64(x.to_f64() / cap), i).to_f64();
        let y = tangent.store(T::from_f64(x.tanh() * rounding.lean(4.0, 0)), i);
        T::from_f64(y.to_f64() * cap)
    };
    x.par_iter().enumerate().with_min_len(1024).map(one).collect()
}
