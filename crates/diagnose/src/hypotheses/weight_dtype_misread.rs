//! # Weights read as another type
//!
//! The bytes of a weight are read as another format of the same width, with the bytes exchanged, or as
//! numbers of half the width.
//!
//! ## How it shows
//!
//! The product has nothing to do with the right one, and its values are of an impossible size, or all tiny.
//!
//! ## Seen in
//!
//! - modular/modular#6660
//!
//! ## Fix
//!
//! Take the type from the file, tensor by tensor, and look at the largest value of each after loading.

use super::fits::of_matrices;
use crate::edit::Weight;
use crate::{At, Edit, Scene};

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Linear(_) | OpKind::Embed(_))) else { return vec![] };
    let Some(format) = op.kind.weights().first().and_then(|(name, _)| scene.format(name)) else { return vec![] };
    let ways = ways(format);
    let edits = ways.iter().flat_map(|&(what, how)| of_matrices(scene, what, move |w| Some(w.loaded(how(w)?))));
    edits.map(|edit| edit.lost(overflown)).collect()
}

/// Where the engine has nothing finite in a value that comes near the end of its range: the order of its
/// sum decides.
fn overflown(at: &At, value: &Tensor<f64>) -> Option<Vec<bool>> {
    let engine = at.recorded(at.site.index, at.site.step)?;
    let end = value.data().iter().any(|y| y.abs() > 1e36) && engine.data().iter().any(|x| x.is_finite());
    (end && engine.shape() == value.shape()).then(|| engine.data().iter().map(|x| !x.is_finite()).collect())
}

/// A reading of a weight's bytes.
pub(super) type Way = (&'static str, fn(&Weight) -> Option<Vec<f32>>);

/// How bytes of a format may be misread.
pub(super) fn ways(format: &str) -> &'static [Way] {
    match format {
        "BF16" => &[
            ("stored in bfloat16, read as float16", |w| Some(each(w, |x| half_value((x.to_bits() >> 16) as u16)))),
            ("bytes of each number are exchanged", |w| exchanged(w, 2)),
        ],
        "F16" => &[
            ("stored in float16, read as bfloat16", |w| Some(each(w, |x| brain(half_bits(x))))),
            ("bytes of each number are exchanged", |w| exchanged(w, 2)),
        ],
        "F32" => &[
            ("stored in float32, read as bfloat16", |w| halves(w, brain)),
            ("stored in float32, read as float16", |w| halves(w, half_value)),
            ("bytes of each number are exchanged", |w| exchanged(w, 4)),
        ],
        _ => &[],
    }
}

fn finite(x: f32) -> f32 {
    // Values that are not numbers would end in NaN everywhere, which is no evidence for anything.
    if x.is_finite() { x } else { 0.0 }
}

fn each(w: &Weight, f: fn(f32) -> f32) -> Vec<f32> {
    let values = w.decoded(|_| {}).unwrap_or_default();
    values.into_iter().map(|x| finite(f(x))).collect()
}

fn exchanged(w: &Weight, size: usize) -> Option<Vec<f32>> {
    let values = w.decoded(|bytes| bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse))?;
    Some(values.into_iter().map(finite).collect())
}

/// The first half of the bytes that its values take in float32, read as bfloat16.
pub(super) fn held_in_float(w: &Weight) -> Option<Vec<f32>> {
    halves(w, brain)
}

/// The first half of the bytes, as so many numbers of half the width.
fn halves(w: &Weight, f: fn(u16) -> f32) -> Option<Vec<f32>> {
    let values = w.decoded(|_| {})?;
    let parts = values.iter().flat_map(|x| [x.to_bits() as u16, (x.to_bits() >> 16) as u16]);
    Some(parts.take(values.len()).map(|bits| finite(f(bits))).collect())
}

fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

pub(super) fn half_value(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 => f32::INFINITY,
        e => (1024.0 + fraction) * 2f32.powi(e - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// The bits of a number that float16 holds.
pub(super) fn half_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let size = x.abs();
    if size == 0.0 {
        return sign;
    }
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-14);
    let fraction = (size * 2f32.powi(10 - exponent)) as u16;
    let biased = if fraction < 1024 { 0 } else { (exponent + 15) as u16 };
    sign | biased << 10 | fraction & 1023
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_half_numbers_go_there_and_back() {
        for bits in (0..0x7c00).chain(0x8000..0xfc00) {
            assert_eq!(half_bits(half_value(bits)), bits, "{bits:#x}");
        }
        assert_eq!(half_value(0x3c00), 1.0);
        assert_eq!(half_value(0x0001), 2f32.powi(-24));
    }
}
