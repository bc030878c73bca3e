//! # Cached numbers decoded as another format
//!
//! The cache holds 16-bit numbers of one format, and they are read as those of the other: bfloat16 for half
//! precision or the reverse.
//!
//! ## How it shows
//!
//! Rows read back differ from rows just written, by powers of two that depend on the number; signs are
//! right.
//!
//! ## Seen in
//!
//! - ikawrakow/ik_llama.cpp#1005
//!
//! ## Fix
//!
//! Store the cache's format with it, and decode by that; test by reading back what was written.

use firstdiff_model::OpKind;
use firstdiff_tensor::Float;

use super::stored::caches;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (which, set) in caches(scene) {
        for (detail, written, read) in [
            ("half precision and read as bfloat16", Float::F16, Float::BF16),
            ("bfloat16 and read as half precision", Float::BF16, Float::F16),
        ] {
            edits.push(Edit::new(format!("{which} are stored in {detail}")).output(move |at, _, value| {
                (matches!(at.op().kind, OpKind::Cache(_)) && set(at.tap())).then_some(())?;
                let mut out = value.clone();
                out.data_mut().iter_mut().for_each(|x| *x = decoded(encoded(*x, written), read));
                Some(out)
            }));
        }
    }
    edits
}

/// Bits of exponent and of fraction.
fn layout(format: Float) -> (i32, i32) {
    if format == Float::BF16 { (8, 7) } else { (5, 10) }
}

/// The 16 bits of a number.
fn encoded(x: f64, format: Float) -> u16 {
    let (exponent, fraction) = layout(format);
    let bias = (1 << (exponent - 1)) - 1;
    let x = format.round(x);
    let sign = u16::from(x.is_sign_negative()) << 15;
    let size = x.abs();
    if !size.is_finite() {
        return sign | (((1 << exponent) - 1) << fraction) as u16;
    }
    // The exponent, or that of subnormal numbers.
    let e = if size == 0.0 { 1 - bias } else { (size.log2().floor() as i32).max(1 - bias) };
    let e = if size / 2f64.powi(e) >= 2.0 { e + 1 } else { e };
    let digits = size / 2f64.powi(e - fraction);
    let digits = digits.round() as i32;
    let hidden = 1 << fraction;
    if digits < hidden { sign | digits as u16 } else { sign | (((e + bias) << fraction) + digits - hidden) as u16 }
}

/// The number of 16 bits.
fn decoded(bits: u16, format: Float) -> f64 {
    let (exponent, fraction) = layout(format);
    let bias = (1 << (exponent - 1)) - 1;
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (e, digits) = (i32::from(bits & 0x7fff) >> fraction, i32::from(bits) & ((1 << fraction) - 1));
    let part = f64::from(digits) / f64::from(1 << fraction);
    match e {
        0 => sign * part * 2f64.powi(1 - bias),
        e if e == (1 << exponent) - 1 => if digits == 0 { sign * f64::INFINITY } else { f64::NAN },
        e => sign * (1.0 + part) * 2f64.powi(e - bias),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_both_formats_are_those_of_the_standards() {
        assert_eq!(encoded(1.0, Float::F16), 0x3c00);
        assert_eq!(encoded(-2.5, Float::F16), 0xc100);
        assert_eq!(encoded(1.0, Float::BF16), 0x3f80);
        assert_eq!(encoded(6e-8, Float::F16), 1);
        for bits in [0u16, 1, 0x3555, 0x3c00, 0x8400, 0x7bff] {
            assert_eq!(encoded(decoded(bits, Float::F16), Float::F16), bits);
            assert_eq!(encoded(decoded(bits, Float::BF16), Float::BF16), bits);
        }
    }
}
