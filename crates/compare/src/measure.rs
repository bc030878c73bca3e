//! One recorded value against the exact one, in units of what rounding explains.
//!
//! The unit is the root of the expected squared deviation, element by element (see
//! `firstdiff_reference::Noise`): one correct rounding never exceeds it. Sums of it over all
//! elements, over each token and over each head are compared with the same sums of the squared
//! error; a common scale factor is tested on its own, because it hides in all of them.

use std::collections::HashSet;

use firstdiff_model::Axis;
use firstdiff_reference::Noise;
use firstdiff_tensor::Tensor;
use rayon::prelude::*;

/// Reported where the true ratio is larger, or infinite because the value may not round at all.
pub const MAX_RATIO: f64 = 1e9;

/// Where healthy ends, in units of the noise floor.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Root mean square over the whole value.
    pub whole: f64,
    /// Root mean square over one token or one head.
    pub part: f64,
    /// Common scale factor, in its standard deviations.
    pub scale: f64,
    /// Parts with fewer elements are not judged on their own.
    pub min_part: usize,
}

/// The thresholds used; docs/VERDICTS.md derives them.
pub const THRESHOLDS: Thresholds = Thresholds { whole: 2.0, part: 4.0, scale: 10.0, min_part: 16 };

/// A token or head whose error was summed on its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Group {
    error: f64,
    variance: f64,
    elements: usize,
}

impl Group {
    fn ratio(&self) -> f64 {
        ratio(self.error, self.variance)
    }
}

/// A recorded value, measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Elements compared.
    pub elements: usize,
    /// Euclidean norm of the error relative to that of the exact value.
    pub rel_l2: f64,
    /// Largest error of an element.
    pub max_abs: f64,
    /// Cosine of the angle between the two values.
    pub cosine: f64,
    /// What rounding explains of `rel_l2`.
    pub noise_rel_l2: f64,
    /// Error in units of the noise floor.
    pub ratio: f64,
    /// The least-squares common factor, minus one.
    pub scale: f64,
    /// `scale` in its standard deviations.
    pub scale_sigmas: f64,
    /// Elements that are not finite where the exact value is.
    pub non_finite: usize,
    /// Sums for each token.
    pub tokens: Vec<Group>,
    /// Sums for each head; empty where the value has none.
    pub heads: Vec<Group>,
}

impl Measured {
    /// Measures `recorded` against `exact`, both in the same axes.
    pub(crate) fn new(
        recorded: &Tensor<f64>,
        exact: &Tensor<f64>,
        noise: &Noise<f64>,
        axes: &[Axis],
    ) -> Measured {
        let shape = recorded.shape();
        let token_axis = axes.iter().position(|a| matches!(a, Axis::Tokens));
        let head_axis = axes.iter().position(|a| matches!(a, Axis::Heads(_)));
        let inner = |axis: usize| shape[axis + 1..].iter().product::<usize>().max(1);
        let index_of = |axis: Option<usize>| axis.map(|a| (inner(a), shape[a]));
        let (token, head) = (index_of(token_axis), index_of(head_axis));
        // Runs that share token and head: the elements inside both axes.
        let run = token
            .map_or(usize::MAX, |t| t.0)
            .min(head.map_or(usize::MAX, |h| h.0))
            .min(recorded.len().max(1));

        let sums = |start: usize| {
            let end = (start + run).min(recorded.len());
            let mut part = Part::default();
            for i in start..end {
                part.add(recorded.data()[i], exact.data()[i], noise.variance[i]);
            }
            part
        };
        let parts: Vec<Part> = (0..recorded.len().div_ceil(run))
            .into_par_iter()
            .with_min_len((4096 / run).max(1))
            .map(|p| sums(p * run))
            .collect();

        let mut whole = Part::default();
        let mut tokens = vec![Group::default(); token.map_or(0, |t| t.1)];
        let mut heads = vec![Group::default(); head.map_or(0, |h| h.1)];
        for (p, part) in parts.iter().enumerate() {
            whole.merge(part);
            for (groups, axis) in [(&mut tokens, token), (&mut heads, head)] {
                if let Some((inner, extent)) = axis {
                    let group = &mut groups[p * run / inner % extent];
                    group.error += part.error;
                    group.variance += part.variance;
                    group.elements += run;
                }
            }
        }
        let (scale, sigmas) = common_scale(recorded, exact, noise);
        let norm = whole.exact.sqrt();
        let relative = |x: f64| if norm > 0.0 { x / norm } else { x };
        Measured {
            elements: recorded.len(),
            rel_l2: relative(whole.error.sqrt()),
            max_abs: whole.max_abs,
            cosine: if whole.exact > 0.0 && whole.recorded > 0.0 {
                whole.dot / (whole.exact.sqrt() * whole.recorded.sqrt())
            } else {
                f64::from(u8::from(whole.exact == whole.recorded))
            },
            noise_rel_l2: relative(whole.variance.sqrt()),
            ratio: if whole.non_finite > 0 { MAX_RATIO } else { ratio(whole.error, whole.variance) },
            scale,
            scale_sigmas: sigmas,
            non_finite: whole.non_finite,
            tokens,
            heads,
        }
    }

    /// Whether rounding does not explain the value.
    pub fn is_wrong(&self) -> bool {
        let part = |groups: &[Group]| groups.iter().any(is_outlier);
        self.non_finite > 0
            || self.ratio > THRESHOLDS.whole
            || self.scale_sigmas > THRESHOLDS.scale
            || part(&self.tokens)
            || part(&self.heads)
    }

    /// The larger of all ratios, each in units of its own threshold: above 1 is wrong.
    pub fn severity(&self) -> f64 {
        let part = self.tokens.iter().chain(&self.heads).filter(|g| g.elements >= THRESHOLDS.min_part);
        let part = part.map(Group::ratio).fold(0.0, f64::max);
        (self.ratio / THRESHOLDS.whole).max(part / THRESHOLDS.part).max(self.scale_sigmas / THRESHOLDS.scale)
    }

    /// Whether every token that is wrong, and every head.
    pub(crate) fn wrong_parts(&self) -> (Vec<bool>, Vec<bool>) {
        let wrong = |groups: &[Group]| groups.iter().map(|g| g.ratio() > THRESHOLDS.whole).collect();
        (wrong(&self.tokens), wrong(&self.heads))
    }
}

fn is_outlier(group: &Group) -> bool {
    group.elements >= THRESHOLDS.min_part && group.ratio() > THRESHOLDS.part
}

/// Root of `error / variance`, at most [`MAX_RATIO`].
fn ratio(error: f64, variance: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / variance).sqrt().min(MAX_RATIO) }
}

#[derive(Default)]
struct Part {
    error: f64,
    variance: f64,
    exact: f64,
    recorded: f64,
    dot: f64,
    max_abs: f64,
    non_finite: usize,
}

impl Part {
    #[inline]
    fn add(&mut self, recorded: f64, exact: f64, variance: f64) {
        if !recorded.is_finite() {
            // Also the scores of masked keys, where an engine may write -inf: no score is judged there.
            self.non_finite += usize::from(exact.is_finite());
            return;
        }
        let error = recorded - exact;
        self.error += error * error;
        self.variance += variance;
        self.exact += exact * exact;
        self.recorded += recorded * recorded;
        self.dot += exact * recorded;
        self.max_abs = self.max_abs.max(error.abs());
    }

    fn merge(&mut self, other: &Part) {
        self.error += other.error;
        self.variance += other.variance;
        self.exact += other.exact;
        self.recorded += other.recorded;
        self.dot += other.dot;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.non_finite += other.non_finite;
    }
}

/// The common factor that fits best, minus one, and how many of its standard deviations that is.
/// Rows that repeat an earlier row round alike and count once.
fn common_scale(recorded: &Tensor<f64>, exact: &Tensor<f64>, noise: &Noise<f64>) -> (f64, f64) {
    let width = exact.row_len().max(1);
    let mut seen = HashSet::new();
    let fresh: Vec<usize> = (0..exact.rows())
        .filter(|&r| {
            // A collision only leaves one row more out of the fit.
            let mix = |h: u64, x: &f64| (h.rotate_left(5) ^ x.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            seen.insert(exact.row(r).iter().fold(0, mix))
        })
        .collect();
    let lanes = noise.lanes.len();
    let sums = fresh
        .par_iter()
        .map(|&r| {
            let mut sums = vec![0.0; 3 + lanes];
            for i in r * width..(r + 1) * width {
                let (x, y) = (recorded.data()[i], exact.data()[i]);
                if !x.is_finite() {
                    continue;
                }
                sums[0] += y * y;
                sums[1] += (x - y) * y;
                sums[2] += noise.variance[i] * y * y;
                for (sum, lane) in sums[3..].iter_mut().zip(&noise.lanes) {
                    *sum += (lane.data()[i] - y) * y;
                }
            }
            sums
        })
        .collect::<Vec<_>>();
    let mut total = vec![0.0; 3 + lanes];
    sums.iter().for_each(|s| total.iter_mut().zip(s).for_each(|(t, s)| *t += s));
    let (square, fit, variance) = (total[0], total[1], total[2]);
    if square == 0.0 {
        return (0.0, 0.0);
    }
    let together = total[3..].iter().map(|s| s * s).sum::<f64>() / lanes.max(1) as f64;
    let deviation = (variance + together + noise.along).sqrt();
    let sigmas = if fit == 0.0 { 0.0 } else { (fit.abs() / deviation).min(MAX_RATIO) };
    (fit / square, sigmas)
}
