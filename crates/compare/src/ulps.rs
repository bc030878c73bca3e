//! Distances in units in the last place: where the inputs of an operation are known exactly, most of
//! its elements equal the correctly rounded result bit for bit, and nearly all others lie beside it.

use firstdiff_reference::Noise;
use firstdiff_tensor::{Float, Tensor, ulp_distance};
use serde::Serialize;

/// How many elements lie how far from the correctly rounded exact value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ulps {
    /// Equal to it.
    pub same: usize,
    /// One unit in the last place away.
    pub one: usize,
    /// Two.
    pub two: usize,
    /// More, or not finite.
    pub more: usize,
}

/// The histogram, for formats short enough that sums err by less than their last place.
pub(crate) fn ulps(recorded: &Tensor<f64>, exact: &Tensor<f64>, noise: &Noise<f64>) -> Option<Ulps> {
    if !matches!(noise.store, Float::BF16 | Float::F16) {
        return None;
    }
    let mut ulps = Ulps::default();
    for (&x, &y) in recorded.data().iter().zip(exact.data()) {
        let count = match ulp_distance(noise.store, x, y) {
            Some(0) => &mut ulps.same,
            Some(1) => &mut ulps.one,
            Some(2) => &mut ulps.two,
            _ => &mut ulps.more,
        };
        *count += 1;
    }
    Some(ulps)
}
