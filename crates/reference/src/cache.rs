//! The formats that engines hold cached keys and values in.

use firstdiff_tensor::{Float, Real};

use crate::random::Random;

/// Channels of a cached row that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// So many neighbouring channels of a token's row, heads one after the other: where heads are shorter, or no
    /// multiple, a group goes over their borders (ggml's blocks).
    Channels(usize),
    /// One head of one token.
    Head,
    /// All heads of one token.
    Token,
}

/// The format of cached keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFormat {
    /// A float format, without a scale.
    Float(Float),
    /// A float format times a scale that is set once: its value is not known here.
    Scaled(Float),
    /// Whole numbers times a scale for each group, `max|x| / (2^(bits-1) - 1)` or about that. An offset beside the
    /// scale only makes the steps smaller.
    Integers {
        /// Bits of a number.
        bits: u32,
        /// What shares a scale.
        group: Group,
        /// The format of the scale.
        scale: Float,
    },
}

impl CacheFormat {
    /// ggml's blocks of 32 numbers with an f16 scale: `q8_0`, or `q4_0` for 4 bits.
    pub const fn blocks(bits: u32) -> CacheFormat {
        CacheFormat::Integers { bits, group: Group::Channels(32), scale: Float::F16 }
    }

    /// The name in results and traces.
    pub fn name(self) -> String {
        match self {
            CacheFormat::Float(format) => format.name().into(),
            CacheFormat::Scaled(format) => format!("{} with a scale", format.name()),
            CacheFormat::Integers { bits, group: Group::Channels(32), scale: Float::F16 } => {
                format!("q{bits}_0")
            }
            CacheFormat::Integers { bits, group, .. } => {
                let group = match group {
                    Group::Channels(n) => format!("{n} channels"),
                    Group::Head => "each head".into(),
                    Group::Token => "each token".into(),
                };
                format!("int{bits} with a scale for {group}")
            }
        }
    }

    /// The float format, where elements are plain floats.
    pub fn float(self) -> Option<Float> {
        match self {
            CacheFormat::Float(format) => Some(format),
            _ => None,
        }
    }

    /// Half of a step, relative to the largest element that shares a scale.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            CacheFormat::Float(format) | CacheFormat::Scaled(format) => format.unit_roundoff(),
            CacheFormat::Integers { bits, .. } => 0.5 / largest_number(bits),
        }
    }

    /// Whether all values lie in the format as they are: then caching them rounds nothing.
    pub(crate) fn holds<T: Real>(self, values: &[T]) -> bool {
        let held = |format: Float| {
            values.iter().all(|x| {
                let x = x.to_f64();
                !x.is_finite() || format.round(x) == x
            })
        };
        self.float().is_some_and(held)
    }

    /// Elements that share a scale, run by run, of rows of `heads` by `dim`.
    fn runs<T>(group: Group, (heads, dim): (usize, usize), rows: &[T]) -> impl Iterator<Item = &[T]> {
        let len = match group {
            Group::Channels(n) => n,
            Group::Head => dim,
            Group::Token => heads * dim,
        };
        rows.chunks((heads * dim).max(1)).flat_map(move |row| row.chunks(len.max(1)))
    }

    /// Expected squared error of each element of rows `[heads, dim]`, when they are stored.
    pub(crate) fn variance<T: Real>(self, rows: &[T], shape: (usize, usize)) -> Vec<f64> {
        match self {
            CacheFormat::Float(format) => rows.iter().map(|x| format.rounding_variance(x.to_f64())).collect(),
            // Where an element lies between two neighbours depends on the scale: the mean over all places.
            CacheFormat::Scaled(format) => {
                let variance = |x: &T| (relative_step(format) * x.to_f64()).powi(2) / 6.0;
                rows.iter().map(variance).collect()
            }
            CacheFormat::Integers { bits, group, scale } => {
                let u = scale.unit_roundoff();
                CacheFormat::runs(group, shape, rows)
                    .flat_map(|run| {
                        let step = largest(run) / largest_number(bits);
                        run.iter().map(move |x| step * step / 6.0 + u * u / 3.0 * x.to_f64().powi(2))
                    })
                    .collect()
            }
        }
    }

    /// Rows as an engine might store them; rounded to nearest without `random`.
    pub(crate) fn stored<T: Real>(self, rows: &[T], shape: (usize, usize), random: Option<Random>) -> Vec<T> {
        let round = |format: Float, x: f64, i: usize| match random {
            None => format.round(x),
            Some(random) => format.round_randomly(x, random.bits(i)),
        };
        match self {
            CacheFormat::Float(format) => {
                rows.iter().enumerate().map(|(i, x)| T::from_f64(round(format, x.to_f64(), i))).collect()
            }
            CacheFormat::Scaled(format) => {
                // Any scale will do that keeps clear of the ends of the format's range.
                let scale = largest(rows) / format.max().sqrt();
                let one = |(i, x): (usize, &T)| {
                    let x = x.to_f64();
                    T::from_f64(if scale == 0.0 { x } else { round(format, x / scale, i) * scale })
                };
                rows.iter().enumerate().map(one).collect()
            }
            CacheFormat::Integers { bits, group, scale } => {
                let mut out: Vec<T> = Vec::with_capacity(rows.len());
                for run in CacheFormat::runs(group, shape, rows) {
                    let first = out.len();
                    let step = round(scale, largest(run) / largest_number(bits), first);
                    out.extend(run.iter().enumerate().map(|(i, x)| {
                        let x = x.to_f64();
                        if step == 0.0 || !step.is_finite() {
                            return T::from_f64(x);
                        }
                        let whole = match random {
                            None => (x / step).round_ties_even(),
                            Some(random) => (x / step + random.site(1).fraction(first + i)).floor(),
                        };
                        T::from_f64(whole * step)
                    }));
                }
                out
            }
        }
    }

    /// How far the nearest neighbour of each element lies at most: what is farther was not rounded to nearest. Where
    /// the scale is not known, the most that any scale makes it; infinite where nothing can be said.
    pub fn reach<T: Real>(self, rows: &[T], shape: (usize, usize)) -> Vec<f64> {
        match self {
            CacheFormat::Float(format) => {
                let of = |x: &T| {
                    let x = x.to_f64();
                    // Beyond the range engines saturate.
                    if x.abs() > format.max() { f64::INFINITY } else { format.ulp(x) / 2.0 }
                };
                rows.iter().map(of).collect()
            }
            CacheFormat::Scaled(_) => vec![f64::INFINITY; rows.len()],
            CacheFormat::Integers { bits, group, scale } => CacheFormat::runs(group, shape, rows)
                .flat_map(|run| {
                    let (most, u) = (largest(run), scale.unit_roundoff());
                    let step = most / largest_number(bits) * (1.0 + u);
                    // An offset is rounded too: at the ends of the range numbers are cut by up to half a step more.
                    run.iter().map(move |_| step + u * most)
                })
                .collect(),
        }
    }
}

impl CacheFormat {
    /// Whether recorded rows lie on this format's grid, whatever its scales are: for most groups of elements that share
    /// one there is a scale that makes all of them numbers of the format, as exactly as `recorded` shows them. Values in
    /// a longer format lie on a coarse grid by chance in few groups; on one as fine as `recorded` itself, in all of them.
    pub fn may_hold(self, rows: &[f64], shape: (usize, usize), recorded: Float) -> bool {
        let u = recorded.unit_roundoff();
        let groups: Vec<&[f64]> = match self {
            CacheFormat::Float(format) => {
                return rows.iter().all(|x| !x.is_finite() || format.round(*x) == *x);
            }
            // A scale for the whole tensor is one for each head of a token too.
            CacheFormat::Scaled(_) => CacheFormat::runs(Group::Head, shape, rows).collect(),
            CacheFormat::Integers { group, .. } => CacheFormat::runs(group, shape, rows).collect(),
        };
        let told = |group: &&&[f64]| group.iter().filter(|x| **x != 0.0 && x.is_finite()).count() > 2;
        let (mut seen, mut fit) = (0, 0);
        for group in groups.iter().filter(told) {
            seen += 1;
            let on_grid = match self {
                CacheFormat::Integers { bits, scale, .. } => {
                    let offset = scale != Float::F16;
                    on_whole_numbers(group, bits, u) || offset && on_numbers_with_offset(group, bits, u)
                }
                CacheFormat::Scaled(format) | CacheFormat::Float(format) => on_floats(group, format, u),
            };
            fit += usize::from(on_grid);
        }
        2 * fit >= seen
    }
}

/// Whether all elements are whole numbers times a scale, the largest near the end of the range.
fn on_whole_numbers(group: &[f64], bits: u32, u: f64) -> bool {
    let (most, end) = (largest(group), largest_number(bits));
    [end, end + 1.0].into_iter().any(|end| {
        let step = most / end;
        // The largest element was rounded, and so was each other.
        group.iter().all(|x| !x.is_finite() || near_whole(x / step, 2.0 * u * (x / step).abs()))
    })
}

/// Whether all elements are whole numbers times a scale, counted from the smallest element.
fn on_numbers_with_offset(group: &[f64], bits: u32, u: f64) -> bool {
    let finite = || group.iter().copied().filter(|x| x.is_finite());
    let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
    let all = 2.0 * largest_number(bits) + 1.0;
    // Where the offset is itself a whole number the ends of the range may be missed by one or two.
    [all, all - 1.0, all - 2.0].into_iter().any(|numbers| {
        let step = (high - low) / numbers;
        finite().all(|x| {
            let slack = u * (x.abs() + 2.0 * low.abs().max(high.abs())) / step;
            near_whole((x - low) / step, slack)
        })
    })
}

fn near_whole(x: f64, slack: f64) -> bool {
    (x - x.round()).abs() <= slack + 1e-6
}

/// Whether all elements are numbers of a float format times a scale: one that makes the largest element any of its
/// significands.
fn on_floats(group: &[f64], format: Float, u: f64) -> bool {
    let most = largest(group);
    let count = 1u32 << (format.significand_bits() - 1);
    (count..2 * count).any(|significand| {
        let step = most / f64::from(significand);
        group.iter().all(|x| {
            // Its significand, of the same number of bits; small ones may be subnormal, where steps are wider.
            let x = x.abs() / step;
            if !x.is_finite() || x < f64::from(count) * SUBNORMAL {
                return true;
            }
            let place = (x / f64::from(count)).log2().floor();
            let scaled = x / place.exp2();
            near_whole(scaled, 2.0 * u * scaled)
        })
    })
}

/// So far below the largest element of its group a scaled 8-bit float may be subnormal.
const SUBNORMAL: f64 = 1.0 / 256.0;

/// The distance between neighbours over the value, at its largest: at powers of two.
fn relative_step(format: Float) -> f64 {
    2.0 * format.unit_roundoff()
}

/// The largest whole number of so many bits, zero in the middle.
fn largest_number(bits: u32) -> f64 {
    f64::from((1u32 << (bits.clamp(2, 16) - 1)) - 1)
}

fn largest<T: Real>(run: &[T]) -> f64 {
    run.iter().map(|x| x.to_f64().abs()).filter(|x| x.is_finite()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f64; 8] = [1.0, -0.37, 0.02, 0.5, 12.0, -3.3, 7.7, 0.0];

    #[test]
    fn what_is_rounded_to_nearest_stays_within_reach_and_what_is_a_step_away_does_not() {
        for format in [
            CacheFormat::Float(Float::E4M3),
            CacheFormat::Float(Float::BF16),
            CacheFormat::blocks(8),
            CacheFormat::Integers { bits: 8, group: Group::Head, scale: Float::F32 },
        ] {
            let stored = format.stored(&ROWS, (1, 4), None);
            let reach = format.reach(&ROWS, (1, 4));
            let farther = |stored: &[f64]| {
                let errors = stored.iter().zip(ROWS).map(|(s, x)| (s - x).abs());
                errors.zip(&reach).filter(|(e, r)| *e > **r * (1.0 + 1e-9)).count()
            };
            assert_eq!(farther(&stored), 0, "{format:?}");
            let towards_zero: Vec<f64> = stored
                .iter()
                .zip(ROWS)
                .zip(&reach)
                .map(|((s, x), r)| if s.abs() > x.abs() { s - (2.0 * r).copysign(*s) } else { *s })
                .collect();
            assert!(farther(&towards_zero) > 0, "{format:?}");
        }
    }

    #[test]
    fn blocks_go_over_the_borders_of_short_heads() {
        // Two heads of 16 channels, one of them ten times larger: one block of 32, so one scale.
        let row: Vec<f64> = (0..32).map(|i| f64::from(i % 16) / if i < 16 { 10.0 } else { 1.0 }).collect();
        let reach = CacheFormat::blocks(8).reach(&row, (2, 16));
        assert_eq!(reach[0], reach[31]);
        assert!(reach[0] > 15.0 / 254.0);
        // A row of another token has scales of its own, whether or not blocks divide it.
        let rows: Vec<f64> = (0..96).map(|i| if i < 48 { 1.0 } else { 100.0 }).collect();
        let reach = CacheFormat::blocks(8).reach(&rows, (1, 48));
        assert!(reach[47] < 0.01 && reach[48] > 0.3);
    }

    #[test]
    fn a_grid_is_told_from_values_in_a_longer_format_whatever_its_scale() {
        let formats = [
            CacheFormat::Scaled(Float::E4M3),
            CacheFormat::Scaled(Float::E5M2),
            CacheFormat::blocks(8),
            CacheFormat::blocks(4),
            CacheFormat::Integers { bits: 4, group: Group::Head, scale: Float::F32 },
        ];
        let rows: Vec<f64> =
            (0..512).map(|i| Float::BF16.round((f64::from(i * i) * 0.37).sin() * 3.3)).collect();
        for format in formats {
            let stored = format.stored(&rows, (2, 32), None);
            let stored: Vec<f64> = stored.iter().map(|x| Float::BF16.round(*x)).collect();
            assert!(format.may_hold(&stored, (2, 32), Float::BF16), "{format:?}");
            assert!(!format.may_hold(&rows, (2, 32), Float::BF16), "{format:?}");
            // A factor keeps the grid.
            let louder: Vec<f64> = stored.iter().map(|x| Float::BF16.round(x * 1.1)).collect();
            assert!(format.may_hold(&louder, (2, 32), Float::BF16), "{format:?}");
        }
        // Three bits of significand hold what two do, not the other way round.
        let fine = CacheFormat::Scaled(Float::E4M3).stored(&rows, (2, 32), None);
        assert!(!CacheFormat::Scaled(Float::E5M2).may_hold(&fine, (2, 32), Float::F32));
        assert!(CacheFormat::Float(Float::BF16).may_hold(&rows, (2, 32), Float::F32));
        assert!(!CacheFormat::Float(Float::E4M3).may_hold(&rows, (2, 32), Float::F32));
    }

    #[test]
    fn numbers_with_an_offset_lie_on_a_grid_too() {
        let format = CacheFormat::Integers { bits: 4, group: Group::Head, scale: Float::F32 };
        let rows: Vec<f64> = (0..256).map(|i| (f64::from(i * i) * 0.37).sin() + 2.0).collect();
        let held = |run: &[f64]| {
            let (low, high) = run.iter().fold((9.0, -9.0), |(l, h): (f64, f64), x| (l.min(*x), h.max(*x)));
            let step = (high - low) / 15.0;
            run.iter().map(|x| ((x - low) / step).round() * step + low).collect::<Vec<_>>()
        };
        let stored: Vec<f64> = rows.chunks(32).flat_map(held).collect();
        assert!(format.may_hold(&stored, (1, 32), Float::F32));
        assert!(!format.may_hold(&rows, (1, 32), Float::F32));
    }

    #[test]
    fn the_variance_is_that_of_rounding_at_random() {
        for format in
            [CacheFormat::Float(Float::E4M3), CacheFormat::Scaled(Float::E4M3), CacheFormat::blocks(8)]
        {
            let rows: Vec<f64> = (0..64).map(|i| (f64::from(i) * 0.7).sin() * 3.0).collect();
            let expected: f64 = format.variance(&rows, (1, 64)).iter().sum();
            let runs = 200;
            let mut found = 0.0;
            for run in 0..runs {
                let stored = format.stored(&rows, (1, 64), Some(Random::new(run, 1, 2)));
                found += stored.iter().zip(&rows).map(|(s, x)| (s - x) * (s - x)).sum::<f64>();
            }
            let ratio = found / runs as f64 / expected;
            // The scale decides how much of the mean over all places there is.
            assert!((0.4..1.4).contains(&ratio), "{format:?}: {ratio}");
        }
    }

    #[test]
    fn only_floats_without_a_scale_hold_values_as_they_are() {
        assert!(CacheFormat::Float(Float::BF16).holds(&[1.5, f64::NAN]));
        assert!(!CacheFormat::Float(Float::BF16).holds(&[1.0 + 1e-4]));
        assert!(!CacheFormat::blocks(8).holds(&[1.0]));
    }
}
