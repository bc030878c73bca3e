//! What an engine does to the input of a matrix product before multiplying.

use firstdiff_tensor::{Float, Real};

use crate::arithmetic::InputRounding;

/// Variance of each element of `x` (rows of `k`) when it is rounded as `rounding` says, at random
/// between its two neighbours.
pub(crate) fn input_variance<T: Real>(x: &[T], k: usize, rounding: InputRounding) -> Vec<f64> {
    match rounding {
        InputRounding::None => vec![0.0; x.len()],
        InputRounding::Float(format) => x.iter().map(|x| format.rounding_variance(x.to_f64())).collect(),
        InputRounding::Blocks { len, scale } => x
            .chunks(k.max(1))
            .flat_map(|row| row.chunks(len))
            .flat_map(|block| in_blocks(block, scale))
            .collect(),
    }
}

/// One block `x = d q`, `d = max|x| / 127`, `q` whole numbers. The scale's own rounding moves all of
/// the block by up to its roundoff, a third of that square on average.
fn in_blocks<T: Real>(block: &[T], scale: Float) -> impl Iterator<Item = f64> {
    let d = block.iter().map(|x| x.to_f64().abs()).fold(0.0, f64::max) / 127.0;
    let u = scale.unit_roundoff();
    block.iter().map(move |x| {
        let x = x.to_f64();
        if d == 0.0 {
            return 0.0;
        }
        let q = x / d;
        let fraction = q - q.floor();
        fraction * (1.0 - fraction) * d * d + u * u / 3.0 * x * x
    })
}
