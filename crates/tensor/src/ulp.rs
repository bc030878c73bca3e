//! Distance between values counted in representable numbers.

use crate::Float;

/// How many values of `format` lie between `a` and `b` (both rounded to it first); `None` when
/// either is NaN. Zero means equal; -0 and +0 are equal.
pub fn ulp_distance(format: Float, a: f64, b: f64) -> Option<u64> {
    if a.is_nan() || b.is_nan() {
        return None;
    }
    Some(ordinal(format, a).abs_diff(ordinal(format, b)))
}

/// Position of `x` in the ordered list of the format's values; zero at zero.
fn ordinal(format: Float, x: f64) -> i64 {
    let magnitude = match format {
        Float::F64 => (x.to_bits() & (u64::MAX >> 1)) as i64,
        Float::F32 => i64::from((x as f32).to_bits() & (u32::MAX >> 1)),
        Float::F16 => i64::from(half::f16::from_f64(x).to_bits() & (u16::MAX >> 1)),
        Float::BF16 => i64::from(half::bf16::from_f64(x).to_bits() & (u16::MAX >> 1)),
    };
    if x.is_sign_negative() { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_apart_also_across_zero() {
        assert_eq!(ulp_distance(Float::BF16, 1.0, 1.0 + Float::BF16.ulp(1.0)), Some(1));
        let tiny = Float::F16.ulp(0.0);
        assert_eq!(ulp_distance(Float::F16, -tiny, tiny), Some(2));
        assert_eq!(ulp_distance(Float::F32, -0.0, 0.0), Some(0));
        assert_eq!(ulp_distance(Float::F32, f64::NAN, 0.0), None);
    }
}
