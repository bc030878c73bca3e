//! One pass over the bytes of two values: all sums that the metrics are made of.
//!
//! Elements are decoded block by block into arrays of f64, and added up in [`LANES`] independent
//! running sums, so that the loops vectorise. Blocks and their order are fixed: results do not
//! depend on threads.

use firstdiff_tensor::DType;

use crate::diff::stored::{BLOCK, BUCKETS, decode, ulps};

const LANES: usize = 8;

/// Sums over some elements of two values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    /// Elements.
    pub elements: usize,
    /// Elements whose values differ.
    pub differ: usize,
    /// Elements that are finite on one side only, or infinite with opposite signs.
    pub non_finite: usize,
    /// Elements that are NaN on both sides.
    pub nan: usize,
    /// Sum of squared differences.
    pub error: f64,
    /// Sum of squares of the first value.
    pub first: f64,
    /// Sum of squares of the second.
    pub second: f64,
    /// The largest difference: where, and both values.
    pub worst: Option<Worst>,
    /// How many elements lie how many values apart, where both have one format.
    pub ulps: [u64; BUCKETS],
    /// Whether a bit differs.
    pub moved: bool,
}

/// The element that differs most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Worst {
    /// Its place, counted as the caller counts.
    pub index: usize,
    /// The first value.
    pub a: f64,
    /// The second.
    pub b: f64,
}

impl Worst {
    /// The difference; infinite where one side is not finite.
    pub fn difference(&self) -> f64 {
        let d = (self.a - self.b).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    }
}

impl Sums {
    /// Adds what `later` elements gave.
    pub fn merge(&mut self, later: &Sums) {
        self.elements += later.elements;
        self.differ += later.differ;
        self.non_finite += later.non_finite;
        self.nan += later.nan;
        self.error += later.error;
        self.first += later.first;
        self.second += later.second;
        self.worse(later.worst);
        self.ulps.iter_mut().zip(later.ulps).for_each(|(sum, more)| *sum += more);
        self.moved |= later.moved;
    }

    fn worse(&mut self, other: Option<Worst>) {
        let now = self.worst.map_or(0.0, |w| w.difference());
        if let Some(other) = other.filter(|w| w.difference() > now) {
            self.worst = Some(other);
        }
    }

    /// Adds elements stored as `a` and `b`, as many in each; the first of them has number `index`.
    ///
    /// Uses the widest vector instructions the processor has. Nothing is fused: the sums are the same
    /// whichever it uses.
    pub fn add(&mut self, a: (DType, &[u8]), b: (DType, &[u8]), index: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                // SAFETY: the processor has the instructions; the function does nothing else unsafe.
                return unsafe { self.add_avx512(a, b, index) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above.
                return unsafe { self.add_avx2(a, b, index) };
            }
        }
        self.add_blocks(a, b, index);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn add_avx512(&mut self, a: (DType, &[u8]), b: (DType, &[u8]), index: usize) {
        self.add_blocks(a, b, index);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn add_avx2(&mut self, a: (DType, &[u8]), b: (DType, &[u8]), index: usize) {
        self.add_blocks(a, b, index);
    }

    #[inline(always)]
    fn add_blocks(&mut self, a: (DType, &[u8]), b: (DType, &[u8]), index: usize) {
        let mut blocks = Blocks { x: [0.0; BLOCK], y: [0.0; BLOCK], words: [0; BLOCK], halves: [0.0; BLOCK] };
        let pieces = a.1.chunks(BLOCK * a.0.size()).zip(b.1.chunks(BLOCK * b.0.size()));
        for (i, (p, q)) in pieces.enumerate() {
            self.block(&mut blocks, (a.0, p), (b.0, q), index + i * BLOCK);
        }
    }

    #[inline(always)]
    fn block(&mut self, blocks: &mut Blocks, a: (DType, &[u8]), b: (DType, &[u8]), index: usize) {
        let n = a.1.len() / a.0.size();
        self.elements += n;
        let (x, y) = (&mut blocks.x[..n], &mut blocks.y[..n]);
        decode(a, x, &mut blocks.words, &mut blocks.halves);
        if a == b {
            self.ulps[0] += n as u64;
            let squares = squares(x);
            let squares = if squares.is_finite() {
                squares
            } else {
                self.nan += x.iter().filter(|x| x.is_nan()).count();
                finite_squares(x)
            };
            self.first += squares;
            self.second += squares;
            return;
        }
        self.moved = true;
        decode(b, y, &mut blocks.words, &mut blocks.halves);
        if a.0 == b.0 {
            ulps(a.0, a.1, b.1, &mut self.ulps);
        }
        let fast = Fast::new(x, y);
        if !(fast.error + fast.first + fast.second).is_finite() {
            return self.careful(x, y, index);
        }
        self.error += fast.error;
        self.first += fast.first;
        self.second += fast.second;
        self.differ += fast.differ as usize;
        if fast.largest > self.worst.map_or(0.0, |w| w.difference())
            && let Some(i) = x.iter().zip(&*y).position(|(a, b)| (a - b).abs() == fast.largest)
        {
            self.worst = Some(Worst { index: index + i, a: x[i], b: y[i] });
        }
    }

    /// The same for elements some of which are not finite. Two NaNs are equal.
    fn careful(&mut self, x: &[f64], y: &[f64], index: usize) {
        for (i, (&a, &b)) in x.iter().zip(y).enumerate() {
            let nan = a.is_nan() && b.is_nan();
            let equal = a == b || nan;
            self.nan += usize::from(nan);
            self.differ += usize::from(!equal);
            if a.is_finite() && b.is_finite() {
                self.error += (a - b) * (a - b);
                self.first += a * a;
                self.second += b * b;
            } else if !equal {
                self.non_finite += 1;
            }
            if !equal {
                self.worse(Some(Worst { index: index + i, a, b }));
            }
        }
    }
}

struct Blocks {
    x: [f64; BLOCK],
    y: [f64; BLOCK],
    words: [u16; BLOCK],
    halves: [f32; BLOCK],
}

/// Sums over one block, assuming that all is finite.
struct Fast {
    error: f64,
    first: f64,
    second: f64,
    largest: f64,
    differ: u64,
}

impl Fast {
    #[inline(always)]
    fn new(x: &[f64], y: &[f64]) -> Fast {
        let (mut error, mut first, mut second) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        let (mut largest, mut differ) = ([0.0f64; LANES], [0u64; LANES]);
        let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let rest = xs.remainder().iter().zip(ys.remainder()).enumerate();
        for (i, (a, b)) in rest {
            let d = a - b;
            error[i] += d * d;
            first[i] += a * a;
            second[i] += b * b;
            largest[i] = if d.abs() > largest[i] { d.abs() } else { largest[i] };
            differ[i] += u64::from(d != 0.0);
        }
        for (a, b) in xs.zip(ys) {
            for i in 0..LANES {
                let d = a[i] - b[i];
                error[i] += d * d;
                first[i] += a[i] * a[i];
                second[i] += b[i] * b[i];
                largest[i] = if d.abs() > largest[i] { d.abs() } else { largest[i] };
                differ[i] += u64::from(d != 0.0);
            }
        }
        Fast {
            error: error.iter().sum(),
            first: first.iter().sum(),
            second: second.iter().sum(),
            largest: largest.iter().fold(0.0, |m, x| f64::max(m, *x)),
            differ: differ.iter().sum(),
        }
    }
}

#[inline(always)]
fn squares(x: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    for (sum, a) in sums.iter_mut().zip(chunks.remainder()) {
        *sum += a * a;
    }
    for a in chunks {
        for i in 0..LANES {
            sums[i] += a[i] * a[i];
        }
    }
    sums.iter().sum()
}

fn finite_squares(x: &[f64]) -> f64 {
    x.iter().filter(|a| a.is_finite()).map(|a| a * a).sum()
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn sums(a: &[f32], b: &[f32]) -> Sums {
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut sums = Sums::default();
        sums.add((DType::F32, &bytes(a)), (DType::F32, &bytes(b)), 0);
        sums
    }

    #[test]
    fn sums_are_those_of_a_plain_loop() {
        let a: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> =
            a.iter().enumerate().map(|(i, x)| x + if i % 7 == 3 { 1e-3 } else { 0.0 }).collect();
        let s = sums(&a, &b);
        let d = |i: usize| f64::from(a[i]) - f64::from(b[i]);
        let error: f64 = (0..5000).map(|i| d(i) * d(i)).sum();
        let norm: f64 = a.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((s.error - error).abs() < 1e-12 * error && (s.first - norm).abs() < 1e-12 * norm);
        assert_eq!((s.elements, s.differ, s.non_finite), (5000, 714, 0));
        let worst = s.worst.unwrap();
        assert!((0..5000).all(|i| d(i).abs() <= worst.difference()));
        assert_eq!(worst.a, f64::from(a[worst.index]));
        assert_eq!(s.ulps.iter().sum::<u64>(), 5000);
        assert_eq!(s.ulps[0], 5000 - 714);
    }

    #[test]
    fn ulps_fall_into_the_buckets_that_they_are_named_after() {
        for (distance, bucket) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 3),
            (4, 3),
            (5, 4),
            (8, 4),
            (9, 5),
            (1024, 11),
            (1025, 12),
            (1 << 30, 12),
        ] {
            let s = sums(&[1.0], &[f32::from_bits(1.0f32.to_bits() + distance)]);
            assert_eq!(s.ulps.iter().position(|n| *n == 1), Some(bucket), "{distance}");
        }
        let s = sums(&[-f32::from_bits(1), 0.0, f32::MAX], &[f32::from_bits(1), -0.0, f32::MIN]);
        assert_eq!((s.ulps[2], s.ulps[0], s.ulps[12]), (1, 1, 1));
        assert_eq!(s.differ, 2);
    }

    #[test]
    fn what_is_not_finite_is_counted_and_poisons_no_sum() {
        let nan = f32::NAN;
        let s = sums(&[1.0, nan, f32::INFINITY, nan, 2.0], &[1.0, nan, f32::INFINITY, 3.0, 2.5]);
        assert_eq!((s.differ, s.non_finite), (2, 1));
        assert_eq!((s.error, s.first), (0.25, 5.0));
        assert_eq!(s.worst.unwrap().index, 3);
        assert!(s.worst.unwrap().difference().is_infinite());
        assert!(!sums(&[nan, 1.0], &[nan, 1.0]).moved);
    }

    #[test]
    fn every_format_decodes_to_its_values_and_formats_mix() {
        let f = half::bf16::from_f32(1.5).to_le_bytes();
        let h = f16::from_f32(1.5).to_le_bytes();
        for (dtype, bytes) in [(DType::BF16, f.to_vec()), (DType::F16, h.to_vec())] {
            let mut s = Sums::default();
            s.add((dtype, &bytes), (DType::F64, &1.25f64.to_le_bytes()), 7);
            assert_eq!((s.error, s.first, s.second), (0.0625, 2.25, 1.5625));
            assert_eq!(s.worst, Some(Worst { index: 7, a: 1.5, b: 1.25 }));
            assert_eq!(s.ulps, [0; BUCKETS]);
        }
    }
}
