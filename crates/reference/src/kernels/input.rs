//! What an engine does to the input of a matrix product before multiplying.

use firstdiff_tensor::{Float, Real};

use crate::arithmetic::InputRounding;

/// Variance of each element of `x` (rows of `k`) when it is rounded as `rounding` says, at random
/// between its two neighbours.
pub(crate) fn input_variance<T: Real>(x: &[T], k: usize, rounding: InputRounding) -> Vec<f64> {
    match rounding {
        InputRounding::None => vec![0.0; x.len()],
        InputRounding::Float(format) => x.iter().map(|x| float(x.to_f64(), format)).collect(),
        InputRounding::Anywhere(format) => x.iter().map(|x| anywhere(x.to_f64(), format)).collect(),
        InputRounding::Blocks { len, scale } => x
            .chunks(k.max(1))
            .flat_map(|row| row.chunks(len))
            .flat_map(|block| in_blocks(block, scale))
            .collect(),
        InputRounding::ScaledFloat { len, format } => x
            .chunks(k.max(1))
            .flat_map(|row| row.chunks(len))
            .flat_map(|block| {
                let scale = largest(block) / format.max();
                block.iter().map(move |x| scaled(x.to_f64(), scale, format))
            })
            .collect(),
    }
}

/// Variance of rounding something of the size of `x` at random: the mean over all places between two
/// values, a sixth of the squared spacing.
fn anywhere(x: f64, format: Float) -> f64 {
    if x == 0.0 || format == Float::F64 { 0.0 } else { format.ulp(x) * format.ulp(x) / 6.0 }
}

/// Variance of rounding `x` in a format whose values are multiplied by about `scale`. Engines choose
/// the scale in slightly different ways, so where `x` falls between two values is not known: the mean
/// over all places, a sixth of the squared spacing.
fn scaled(x: f64, scale: f64, format: Float) -> f64 {
    if scale == 0.0 {
        return 0.0;
    }
    let step = format.ulp(x / scale) * scale;
    step * step / 6.0
}

/// The variance of bringing a weight to `format`, as a map over weights.
pub(crate) fn weight_variance(format: Float) -> fn(f32) -> f32 {
    match format {
        Float::TF32 => |w| float(f64::from(w), Float::TF32) as f32,
        Float::F16 => |w| float(f64::from(w), Float::F16) as f32,
        _ => |w| float(f64::from(w), Float::BF16) as f32,
    }
}

fn largest<T: Real>(block: &[T]) -> f64 {
    block.iter().map(|x| x.to_f64().abs()).fold(0.0, f64::max)
}

/// Variance of bringing `x` to a shorter format. Tensor cores may cut off what tf32 lacks instead of
/// rounding it: the mean square over all places is then a third of the squared spacing.
fn float(x: f64, format: Float) -> f64 {
    match format {
        Float::TF32 if format.round(x) != x => format.ulp(x) * format.ulp(x) / 3.0,
        _ => format.rounding_variance(x),
    }
}

/// One block `x = d q`, `d = max|x| / 127`, `q` whole numbers. The scale's own rounding moves all of
/// the block by up to its roundoff, a third of that square on average.
fn in_blocks<T: Real>(block: &[T], scale: Float) -> impl Iterator<Item = f64> {
    let u = scale.unit_roundoff();
    let d = step(block);
    block.iter().map(move |x| quantisation(x.to_f64(), d) + u * u / 3.0 * x.to_f64() * x.to_f64())
}

/// The distance between two neighbouring values of a block.
fn step<T: Real>(block: &[T]) -> f64 {
    largest(block) / 127.0
}

/// Variance of rounding `x` to a multiple of `d` at random.
fn quantisation(x: f64, d: f64) -> f64 {
    if d == 0.0 {
        return 0.0;
    }
    let fraction = x / d - (x / d).floor();
    fraction * (1.0 - fraction) * d * d
}

/// Variance of `sum of error * direction` over one row, when the row is rounded as `rounding` says.
/// A block's scale errs for all of it at once.
pub(crate) fn variance_along<T: Real>(x: &[T], direction: &[f32], rounding: InputRounding) -> f64 {
    let elements = |x: &[T], g: &[f32], variance: &dyn Fn(f64) -> f64| -> f64 {
        x.iter().zip(g).map(|(x, &g)| variance(x.to_f64()) * f64::from(g) * f64::from(g)).sum()
    };
    match rounding {
        InputRounding::None => 0.0,
        InputRounding::Float(format) => elements(x, direction, &|x| float(x, format)),
        InputRounding::Anywhere(format) => elements(x, direction, &|x| anywhere(x, format)),
        InputRounding::ScaledFloat { len, format } => x
            .chunks(len)
            .zip(direction.chunks(len))
            .map(|(x, g)| {
                let scale = largest(x) / format.max();
                elements(x, g, &|x| scaled(x, scale, format))
            })
            .sum(),
        InputRounding::Blocks { len, scale } => x
            .chunks(len)
            .zip(direction.chunks(len))
            .map(|(x, g)| {
                let d = step(x);
                let together: f64 = x.iter().zip(g).map(|(x, &g)| x.to_f64() * f64::from(g)).sum();
                let u = scale.unit_roundoff();
                elements(x, g, &|x| quantisation(x, d)) + u * u / 3.0 * together * together
            })
            .sum(),
    }
}
