//! Weights of tokens as whole numbers.

use std::f64::consts::{LN_2, LOG2_E};

/// The weight of the largest logit: 2⁴⁰. The sum over a vocabulary of up to 2²⁴ tokens fits a `u64`, and a token
/// whose weight rounds to nothing is 10¹² times less likely than the best.
pub const ONE: u64 = 1 << 40;

/// ln(2)ⁿ / n!: the Taylor series of 2ˣ, good to 2⁻⁴⁷ for |x| ≤ ½, finer than the weights' unit.
const POLYNOMIAL: [f64; 12] = [
    1.0,
    LN_2,
    0.240_226_506_959_100_7,
    0.055_504_108_664_821_58,
    0.009_618_129_107_628_477,
    0.001_333_355_814_642_844_3,
    0.000_154_035_303_933_816_1,
    1.525_273_380_405_984e-5,
    1.321_548_679_014_431e-6,
    1.017_808_600_923_969_9e-7,
    7.054_911_620_801_123e-9,
    4.445_538_271_870_811_5e-10,
];

/// exp((`logit` − `largest`) / `temperature`) in units of 1 / [`ONE`], rounded down.
///
/// Only f64 additions, multiplications and divisions, each rounded to nearest and none fused, in the order written:
/// every machine gives the same number.
pub fn weight(logit: f32, largest: f32, temperature: f64) -> u64 {
    if logit == largest {
        return ONE;
    }
    let power = (f64::from(logit) - f64::from(largest)) / temperature * LOG2_E;
    // Below 2⁻⁴⁰ nothing is left.
    if power.is_nan() || power <= -41.0 {
        return 0;
    }
    let whole = power.round_ties_even();
    let part = power - whole;
    let value = POLYNOMIAL.iter().rev().fold(0.0, |sum, c| sum * part + c);
    // 2^(40 + whole) is a normal number, and multiplying by it is exact.
    let scale = f64::from_bits(((1023 + 40 + whole as i64) as u64) << 52);
    ((value * scale) as u64).min(ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_the_exponential_to_its_last_unit() {
        for i in 0..200_000u32 {
            let x = -(i as f32) * 1.5e-4;
            let exact = f64::from(x).exp() * ONE as f64;
            let off = weight(3.0 + x, 3.0, 1.0) as f64 - (f64::from(3.0 + x) - 3.0).exp() * ONE as f64;
            assert!((-1.01..=0.01).contains(&off), "exp({x}) is {exact}, off by {off}");
        }
    }

    #[test]
    fn a_weight_never_grows_as_the_logit_falls() {
        let mut last = ONE;
        let mut logit = 12.0f32;
        while logit > -30.0 {
            let w = weight(logit, 12.0, 0.8);
            assert!(w <= last, "{logit}: {w} > {last}");
            last = w;
            logit -= 7.7e-6;
        }
        assert_eq!(last, 0);
    }

    #[test]
    fn what_is_no_ordinary_number_weighs_nothing_unless_it_is_the_largest() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(weight(-inf, 0.0, 1.0), 0);
        assert_eq!(weight(nan, 0.0, 1.0), 0);
        assert_eq!(weight(0.0, inf, 1.0), 0);
        assert_eq!(weight(inf, inf, 1.0), ONE);
        assert_eq!(weight(f32::MIN, f32::MAX, 1e-300), 0);
    }
}
