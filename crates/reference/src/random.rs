//! Random numbers that depend on where they are used, not on when: the same whatever the threads.

/// A stream of random numbers for one use: a lane, an operation, a step, a place inside it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random {
    key: u64,
}

impl Random {
    pub fn new(lane: usize, op: usize, step: usize) -> Random {
        let key = mix(lane as u64 ^ mix(op as u64 ^ mix(step as u64 ^ 0x5eed)));
        Random { key }
    }

    /// An independent stream for another place inside the same operation.
    pub fn site(self, site: u64) -> Random {
        Random { key: mix(self.key ^ mix(site.wrapping_add(0x517e))) }
    }

    /// Uniform over all `u64`.
    #[inline]
    pub fn bits(self, index: usize) -> u64 {
        mix(self.key.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in 0..1.
    #[inline]
    pub fn fraction(self, index: usize) -> f64 {
        (self.bits(index) >> 11) as f64 * (0.5f64).powi(53)
    }

    /// Uniform in -1..1.
    #[inline]
    pub fn symmetric(self, index: usize) -> f64 {
        (self.bits(index) as i64) as f64 * (1.0 / 9_223_372_036_854_775_808.0)
    }

    /// Mean 0, variance 1, nearly normal: the sum of four uniform numbers.
    #[inline]
    pub fn normal(self, index: usize) -> f64 {
        let bits = self.bits(index);
        let parts = [bits, bits >> 16, bits >> 32, bits >> 48].map(|b| f64::from((b & 0xffff) as u16));
        (parts.iter().sum::<f64>() / 65536.0 - 2.0) * 3f64.sqrt()
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_promised() {
        let r = Random::new(1, 2, 3).site(4);
        let n = 100_000;
        let moments = |f: &dyn Fn(usize) -> f64| {
            let (s, q) = (0..n).map(f).fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
            (s / n as f64, q / n as f64)
        };
        let (mean, square) = moments(&|i| r.normal(i));
        // Six standard errors of a mean (1/sqrt n) and of a mean square (below sqrt(2/n)).
        assert!(mean.abs() < 6.0 / (n as f64).sqrt() && (square - 1.0).abs() < 6.0 * (2.0 / n as f64).sqrt());
        let (mean, square) = moments(&|i| r.symmetric(i));
        assert!(
            mean.abs() < 6.0 / (n as f64).sqrt()
                && (square - 1.0 / 3.0).abs() < 6.0 * (2.0 / n as f64).sqrt()
        );
    }
}
