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
    let rounded = format.round(x).abs();
    if rounded.is_infinite() {
        return if x < 0.0 { i64::MIN / 2 } else { i64::MAX / 2 };
    }
    let ulp = format.ulp(rounded);
    // Each doubling of the spacing has used up one binade of values.
    let binades = (ulp / format.ulp(0.0)).log2().round() as i64;
    let magnitude = (rounded / ulp) as i64 + (binades << (format.significand_bits() - 1));
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

    #[test]
    fn distances_are_those_of_the_bit_patterns() {
        for (a, b) in [(1.0f32, 2.0), (-3.5, 1e-40), (1e30, 1e-30), (0.0, f32::MIN_POSITIVE)] {
            let at = |x: f32| {
                let magnitude = i64::from(x.to_bits() & (u32::MAX >> 1));
                if x < 0.0 { -magnitude } else { magnitude }
            };
            let expected = at(a).abs_diff(at(b));
            assert_eq!(ulp_distance(Float::F32, f64::from(a), f64::from(b)), Some(expected), "{a} {b}");
        }
        assert_eq!(ulp_distance(Float::E4M3, 240.0, 448.0), Some(7));
        assert_eq!(ulp_distance(Float::F64, 1.0, 1.0f64.next_up()), Some(1));
    }
}
