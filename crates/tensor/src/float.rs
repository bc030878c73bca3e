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
    /// TensorFloat-32: the range of binary32 with 11 significand bits, read by tensor cores.
    TF32,
    /// 8-bit float with 4 exponent bits and no infinities (OCP E4M3).
    E4M3,
    /// 8-bit float with 5 exponent bits (OCP E5M2).
    E5M2,
}

impl Float {
    /// The spelling used in traces and messages.
    pub fn name(self) -> &'static str {
        match self {
            Float::F64 => "f64",
            Float::F32 => "f32",
            Float::F16 => "f16",
            Float::BF16 => "bf16",
            Float::TF32 => "tf32",
            Float::E4M3 => "fp8-e4m3",
            Float::E5M2 => "fp8-e5m2",
        }
    }

    /// The format spelled `name`; torch's spellings (`bfloat16`, `torch.float32`) are understood.
    pub fn from_name(name: &str) -> Option<Float> {
        match name.trim_start_matches("torch.").to_ascii_lowercase().as_str() {
            "f64" | "float64" | "double" => Some(Float::F64),
            "f32" | "float32" | "float" | "fp32" => Some(Float::F32),
            "f16" | "float16" | "half" | "fp16" => Some(Float::F16),
            "bf16" | "bfloat16" => Some(Float::BF16),
            "tf32" | "tensorfloat32" => Some(Float::TF32),
            "fp8-e4m3" | "e4m3" | "f8_e4m3" | "float8_e4m3fn" => Some(Float::E4M3),
            "fp8-e5m2" | "e5m2" | "f8_e5m2" | "float8_e5m2" => Some(Float::E5M2),
            _ => None,
        }
    }

    /// Unit roundoff: half the distance from 1 to the next value. Rounding to nearest changes a
    /// normal value by at most this fraction of it.
    pub fn unit_roundoff(self) -> f64 {
        (0.5f64).powi(self.significand_bits())
    }

    /// Significand bits, the hidden one included.
    #[inline]
    pub fn significand_bits(self) -> i32 {
        match self {
            Float::F64 => 53,
            Float::F32 => 24,
            Float::F16 | Float::TF32 => 11,
            Float::BF16 => 8,
            Float::E4M3 => 4,
            Float::E5M2 => 3,
        }
    }

    /// Exponent of the smallest normal value.
    #[inline]
    fn min_exponent(self) -> i32 {
        match self {
            Float::F64 => -1022,
            Float::F32 | Float::BF16 | Float::TF32 => -126,
            Float::F16 | Float::E5M2 => -14,
            Float::E4M3 => -6,
        }
    }

    /// `x` rounded to the nearest value of the format, ties to even, as hardware does. Rounded once:
    /// going from f64 to bf16 by way of f32 would err on the wrong side of some ties.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Float::F64 => x,
            Float::F32 => f64::from(x as f32),
            _ => {
                let drop = 53 - self.significand_bits();
                let exponent = exponent(x);
                if exponent == 1024 {
                    return x;
                }
                if exponent < self.min_exponent() {
                    let ulp = self.ulp(x);
                    return (x / ulp).round_ties_even() * ulp;
                }
                let odd = (x.to_bits() >> drop) & 1;
                let half = (1u64 << (drop - 1)) - 1;
                let rounded = f64::from_bits((x.to_bits() + half + odd) & !((1u64 << drop) - 1));
                if rounded.abs() > self.max() { f64::INFINITY.copysign(x) } else { rounded }
            }
        }
    }

    /// The largest finite value.
    #[inline]
    pub fn max(self) -> f64 {
        match self {
            Float::F64 => f64::MAX,
            Float::F32 => f64::from(f32::MAX),
            Float::F16 => f16::MAX.to_f64(),
            Float::BF16 => bf16::MAX.to_f64(),
            // f32's largest exponent with the significand full.
            Float::TF32 => (2.0 - (0.5f64).powi(10)) * power_of_two(127),
            Float::E4M3 => 448.0,
            Float::E5M2 => 57344.0,
        }
    }

    /// The spacing of the format's values at `x`: one unit in the last place.
    pub fn ulp(self, x: f64) -> f64 {
        let exponent = exponent(x).clamp(self.min_exponent(), 1022);
        power_of_two(exponent - self.significand_bits() + 1)
    }

    /// `x` rounded to one of its two neighbours in the format, the nearer one more often: away from
    /// zero with the probability of the fraction lost. `random` is to be uniform over all `u64`.
    /// Unbiased; the expected square of its error is [`Float::rounding_variance`].
    #[inline]
    pub fn round_randomly(self, x: f64, random: u64) -> f64 {
        let exponent = exponent(x);
        if self == Float::F64 || exponent == 1024 {
            return x;
        }
        if exponent >= self.min_exponent() {
            // The low bits that the format lacks; a carry out of them moves to the next value.
            let mask = (1u64 << (53 - self.significand_bits())) - 1;
            let rounded = f64::from_bits((x.to_bits() + (random & mask)) & !mask);
            return if rounded.abs() > self.max() { f64::INFINITY.copysign(x) } else { rounded };
        }
        let ulp = self.ulp(x);
        let dither = (random >> 32) as f64 * power_of_two(-32);
        (x / ulp + dither).floor() * ulp
    }

    /// Expected square of the error of [`Float::round_randomly`]: `f (1 - f) ulp^2`, with `f` the
    /// fraction of an ulp by which `x` exceeds the value below it. Rounding to nearest errs by
    /// `min(f, 1 - f) ulp`, whose square is never larger: this is an upper bound on what one
    /// correct rounding can do, element by element.
    #[inline]
    pub fn rounding_variance(self, x: f64) -> f64 {
        let exponent = exponent(x);
        if self == Float::F64 || exponent == 1024 {
            return 0.0;
        }
        if exponent >= self.min_exponent() {
            let drop = 53 - self.significand_bits();
            let lost = (x.to_bits() & ((1u64 << drop) - 1)) as i64 as f64;
            let step = power_of_two(exponent - 52);
            // Counted in the last place of f64: `lost` of `2^drop` steps.
            return lost * (power_of_two(drop) - lost) * step * step;
        }
        let ulp = self.ulp(x);
        let scaled = x / ulp;
        let fraction = scaled - scaled.floor();
        fraction * (1.0 - fraction) * ulp * ulp
    }
}

/// The exponent of `x` as stored: -1023 for zero and subnormal numbers, 1024 for infinity and NaN.
#[inline]
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// `2^exponent`, for exponents from -1074 to 1023.
#[inline]
fn power_of_two(exponent: i32) -> f64 {
    if exponent >= -1022 { f64::from_bits(((exponent + 1023) as u64) << 52) } else { (2f64).powi(exponent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_format_are_left_alone_by_every_rounding() {
        for format in [Float::F32, Float::F16, Float::BF16, Float::TF32, Float::E4M3, Float::E5M2] {
            for x in [0.0, 1.0, -1.5, 0.125, 224.0, -3.0 * format.ulp(0.0)] {
                assert_eq!(format.round(x), x, "{format:?}");
                for random in [0, 1 << 40, u64::MAX / 3, u64::MAX] {
                    assert_eq!(format.round_randomly(x, random), x, "{format:?}");
                }
                assert_eq!(format.rounding_variance(x), 0.0);
            }
        }
    }

    #[test]
    fn random_rounding_is_unbiased_and_its_variance_is_as_stated() {
        for (format, x) in [
            (Float::BF16, 1.0 + 0.3 * Float::BF16.ulp(1.0)),
            (Float::BF16, -(5.0 + 0.3 * Float::BF16.ulp(5.0))),
            (Float::F32, 1e-3 * 1.000_000_07),
            (Float::F16, 12.3 * Float::F16.ulp(0.0)),
        ] {
            let n = 1u64 << 16;
            let errors = (0..n).map(|i| format.round_randomly(x, i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) - x);
            let (sum, square) = errors.fold((0.0, 0.0), |(s, q), e| (s + e, q + e * e));
            let ulp = format.ulp(x);
            assert!((sum / n as f64).abs() < 0.01 * ulp, "{format:?} {x}");
            assert!(
                (square / n as f64 - format.rounding_variance(x)).abs() < 0.01 * ulp * ulp,
                "{format:?} {x}"
            );
        }
    }

    #[test]
    fn rounding_to_nearest_never_errs_more_than_the_variance_says() {
        for i in 0..10_000u64 {
            let x = (i as f64 * 0.7).sin() * (10f64).powi((i % 9) as i32 - 6);
            for format in [Float::F32, Float::F16, Float::BF16, Float::TF32, Float::E4M3, Float::E5M2] {
                let error = format.round(x) - x;
                assert!(error * error <= format.rounding_variance(x) * (1.0 + 1e-9), "{format:?} {x}");
            }
        }
    }

    #[test]
    fn every_short_value_rounds_to_itself_and_midpoints_go_to_even() {
        for bits in 0..=u16::MAX {
            for (format, x) in
                [(Float::F16, f16::from_bits(bits).to_f64()), (Float::BF16, bf16::from_bits(bits).to_f64())]
            {
                if x.is_finite() {
                    assert_eq!(format.round(x), x);
                    assert_eq!(format.round(x + 0.499 * format.ulp(x) * x.signum()), x);
                }
            }
        }
        let ulp = Float::BF16.ulp(1.0);
        assert_eq!(Float::BF16.round(1.0 + 0.5 * ulp), 1.0);
        assert_eq!(Float::BF16.round(1.0 + 1.5 * ulp), 1.0 + 2.0 * ulp);
        assert_eq!(Float::F16.round(65520.0), f64::INFINITY);
    }

    #[test]
    fn unit_roundoff_is_half_an_ulp_of_one() {
        for format in [Float::F64, Float::F32, Float::F16, Float::BF16, Float::TF32, Float::E4M3, Float::E5M2]
        {
            assert_eq!(format.unit_roundoff(), format.ulp(1.0) / 2.0);
        }
    }

    #[test]
    fn torch_spellings_are_understood() {
        assert_eq!(Float::from_name("torch.bfloat16"), Some(Float::BF16));
        assert_eq!(Float::from_name("int8"), None);
    }
}
