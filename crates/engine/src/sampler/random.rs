//! Random numbers by place: the draw of a step depends on the seed and the step's number alone.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64 random bits for one draw: number `draw` of SplitMix64 (Steele, Lea and Flood, 2014) started at the scrambled
/// `seed`, so that neighbouring seeds share nothing.
pub fn bits(seed: u64, draw: u64) -> u64 {
    scramble(scramble(seed.wrapping_add(GOLDEN)).wrapping_add(draw.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A number below `total`: the upper half of the 128-bit product.
pub fn below(total: u64, bits: u64) -> u64 {
    ((u128::from(total) * u128::from(bits)) >> 64) as u64
}

fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_the_published_generators() {
        // The generator of the paper started at 1234567 gives this first number.
        assert_eq!(scramble(1_234_567u64.wrapping_add(GOLDEN)), 6_457_827_717_110_365_317);
        assert_eq!(bits(0, 0), bits(0, 0));
    }

    #[test]
    fn neighbouring_seeds_and_draws_share_nothing() {
        // Each pair differs in about half of the 64 bits: 6 standard deviations are 24.
        let mut total = 0u64;
        for i in 0..1000 {
            let a = (bits(i, 5) ^ bits(i + 1, 5)).count_ones();
            let b = (bits(5, i) ^ bits(5, i + 1)).count_ones();
            let c = (bits(i, i + 1) ^ bits(i + 1, i)).count_ones();
            for n in [a, b, c] {
                assert!((8..=56).contains(&n), "{i}: {n}");
                total += u64::from(n);
            }
        }
        assert!((total as f64 / 3000.0 - 32.0).abs() < 6.0 * 4.0 / 3000f64.sqrt());
    }

    #[test]
    fn a_number_is_always_below_the_total() {
        for total in [1, 2, 3, 1 << 40, u64::MAX] {
            assert_eq!(below(total, 0), 0);
            assert_eq!(below(total, u64::MAX), total - 1);
        }
    }
}
