//! The formats an engine rounds to, and how rounding to them is done.

use half::{bf16, f16};

/// A floating-point format that an engine may hold values in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
}

impl Float {
    /// The spelling used in traces and messages.
    pub fn name(self) -> &'static str {
        match self {
            Float::F64 => "f64",
            Float::F32 => "f32",
            Float::F16 => "f16",
            Float::BF16 => "bf16",
        }
    }

    /// The format spelled `name`; torch's spellings (`bfloat16`, `torch.float32`) are understood.
    pub fn from_name(name: &str) -> Option<Float> {
        match name.trim_start_matches("torch.").to_ascii_lowercase().as_str() {
            "f64" | "float64" | "double" => Some(Float::F64),
            "f32" | "float32" | "float" | "fp32" => Some(Float::F32),
            "f16" | "float16" | "half" | "fp16" => Some(Float::F16),
            "bf16" | "bfloat16" => Some(Float::BF16),
            _ => None,
        }
    }

    /// Unit roundoff: half the distance from 1 to the next value. Rounding to nearest changes a
    /// normal value by at most this fraction of it.
    pub fn unit_roundoff(self) -> f64 {
        (0.5f64).powi(self.significand_bits())
    }

    /// Significand bits, the hidden one included.
    fn significand_bits(self) -> i32 {
        match self {
            Float::F64 => 53,
            Float::F32 => 24,
            Float::F16 => 11,
            Float::BF16 => 8,
        }
    }

    /// Exponent of the smallest normal value.
    fn min_exponent(self) -> i32 {
        match self {
            Float::F64 => -1022,
            Float::F32 | Float::BF16 => -126,
            Float::F16 => -14,
        }
    }

    /// `x` rounded to the nearest value of the format, ties to even, as hardware does.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Float::F64 => x,
            Float::F32 => f64::from(x as f32),
            Float::F16 => f16::from_f64(x).to_f64(),
            Float::BF16 => bf16::from_f64(x).to_f64(),
        }
    }

    /// The spacing of the format's values at `x`: one unit in the last place.
    pub fn ulp(self, x: f64) -> f64 {
        if x == 0.0 || !x.is_finite() {
            return (2f64).powi(self.min_exponent() - self.significand_bits() + 1);
        }
        let exponent = (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(self.min_exponent());
        (2f64).powi(exponent - self.significand_bits() + 1)
    }

    /// `x` rounded to one of its two neighbours in the format, the nearer one more often: up when
    /// the fraction lost exceeds `dither`, which is to be uniform in 0..1. Unbiased, and twice the
    /// variance of rounding to nearest.
    pub fn round_randomly(self, x: f64, dither: f64) -> f64 {
        if self == Float::F64 || !x.is_finite() {
            return x;
        }
        let ulp = self.ulp(x);
        // A power of two: both the division and the product are exact.
        self.round((x / ulp + dither).floor() * ulp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_format_are_left_alone_by_every_rounding() {
        for format in [Float::F32, Float::F16, Float::BF16] {
            for x in [0.0, 1.0, -1.5, 0.125, 240.0, -3.0 * format.ulp(0.0)] {
                assert_eq!(format.round(x), x, "{format:?}");
                for dither in [0.0, 0.3, 0.999] {
                    assert_eq!(format.round_randomly(x, dither), x, "{format:?}");
                }
            }
        }
    }

    #[test]
    fn random_rounding_is_unbiased_and_picks_a_neighbour() {
        let x = 1.0 + 0.3 * Float::BF16.ulp(1.0);
        let n = 1000;
        let ups = (0..n).filter(|i| {
            let y = Float::BF16.round_randomly(x, (f64::from(*i) + 0.5) / f64::from(n));
            assert!(y == 1.0 || y == 1.0 + Float::BF16.ulp(1.0));
            y > 1.0
        });
        assert_eq!(ups.count(), 300);
    }

    #[test]
    fn unit_roundoff_is_half_an_ulp_of_one() {
        for format in [Float::F64, Float::F32, Float::F16, Float::BF16] {
            assert_eq!(format.unit_roundoff(), format.ulp(1.0) / 2.0);
        }
    }

    #[test]
    fn torch_spellings_are_understood() {
        assert_eq!(Float::from_name("torch.bfloat16"), Some(Float::BF16));
        assert_eq!(Float::from_name("int8"), None);
    }
}
