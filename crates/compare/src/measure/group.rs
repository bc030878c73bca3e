//! Sums over some elements of a value, and what they say.

use firstdiff_model::Axis;

use super::sums::Value;
use super::{MAX_RATIO, THRESHOLDS, ratio};

/// Sums over the elements of a group: the whole value, or one token, key, head or channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// Elements.
    pub elements: usize,
    /// Squared error.
    pub error: f64,
    /// Expected squared error.
    pub variance: f64,
    /// Squared exact value.
    pub exact: f64,
    /// Squared recorded value.
    pub recorded: f64,
    /// Exact times recorded value.
    pub dot: f64,
    /// Largest error.
    pub max_abs: f64,
    /// Elements that are not finite where the exact value is.
    pub non_finite: usize,
    /// Elements that err, and those among them that err towards zero.
    pub erring: [usize; 2],
    /// Error times direction: what a common factor is fitted with.
    pub along: Functional,
    /// The error, and the variance of its sum.
    pub offset: Functional,
}

/// A weighted sum of errors.
#[derive(Clone, Debug, Default)]
pub(super) struct Functional {
    pub sum: f64,
    /// The same sum of the exact values: what a factor multiplies.
    pub unit: f64,
    /// Its variance if the elements err independently.
    pub variance: f64,
    /// Its variance from inputs that are rounded once for many outputs.
    pub shared: f64,
    /// The same sum in every lane.
    pub lanes: Vec<f64>,
}

impl Functional {
    fn merge(&mut self, other: &Functional) {
        self.sum += other.sum;
        self.unit += other.unit;
        self.variance += other.variance;
        self.shared += other.shared;
        if self.lanes.len() < other.lanes.len() {
            self.lanes.resize(other.lanes.len(), 0.0);
        }
        self.lanes.iter_mut().zip(&other.lanes).for_each(|(a, b)| *a += b);
    }

    /// Mean square over the lanes: what inner roundings do to the sum together.
    fn coherent(&self) -> f64 {
        mean_square(&self.lanes)
    }

    /// The sum in its standard deviations.
    fn sigmas(&self, coherence: f64) -> f64 {
        if self.sum == 0.0 {
            return 0.0;
        }
        let coherent = self.coherent().max(coherence * self.variance);
        (self.sum.abs() / (self.variance + self.shared + coherent).sqrt()).min(MAX_RATIO)
    }
}

/// Mean square over the lanes that round at random: all but the first.
pub(super) fn mean_square(lanes: &[f64]) -> f64 {
    let random = lanes.get(1..).unwrap_or_default();
    random.iter().map(|s| s * s).sum::<f64>() / random.len().max(1) as f64
}

/// How much more inner roundings move a whole sum than independent errors would. A handful of lanes
/// says little about one group, so the groups of an axis are taken together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coherence {
    along: f64,
    offset: f64,
}

impl Coherence {
    pub fn of<'a>(groups: impl Iterator<Item = &'a Group>) -> Coherence {
        let mut sums = [0.0; 4];
        for g in groups {
            sums[0] += g.along.coherent();
            sums[1] += g.along.variance;
            sums[2] += g.offset.coherent();
            sums[3] += g.offset.variance;
        }
        let over = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Coherence { along: over(sums[0], sums[1]), offset: over(sums[2], sums[3]) }
    }
}

impl Group {
    pub fn merge(&mut self, other: &Group) {
        self.elements += other.elements;
        self.error += other.error;
        self.variance += other.variance;
        self.exact += other.exact;
        self.recorded += other.recorded;
        self.dot += other.dot;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.non_finite += other.non_finite;
        self.erring.iter_mut().zip(other.erring).for_each(|(a, b)| *a += b);
        self.along.merge(&other.along);
        self.offset.merge(&other.offset);
    }

    /// Error in units of the noise floor; the largest there is where something is not finite.
    pub fn ratio(&self) -> f64 {
        if self.non_finite > 0 { MAX_RATIO } else { ratio(self.error, self.variance) }
    }

    /// The least-squares common factor, minus one.
    pub fn scale(&self) -> f64 {
        if self.along.unit > 0.0 { self.along.sum / self.along.unit } else { 0.0 }
    }

    pub fn scale_sigmas(&self, coherence: &Coherence) -> f64 {
        self.along.sigmas(coherence.along)
    }

    /// Cosine of the angle between the two values.
    pub fn cosine(&self) -> f64 {
        if self.exact > 0.0 && self.recorded > 0.0 {
            self.dot / (self.exact.sqrt() * self.recorded.sqrt())
        } else {
            f64::from(u8::from(self.exact == self.recorded))
        }
    }
}

/// What a group is found wrong by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A factor common to its elements.
    Scale,
    /// An offset common to its elements.
    Offset,
}

/// A group that fails a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    /// Its place along the axis.
    pub index: usize,
    /// The test: by a factor, by an offset, or by size where there is none.
    pub reason: Option<Reason>,
    /// The figure, in the unit of the test's limit.
    pub figure: f64,
    /// The least-squares factor of its elements.
    pub factor: f64,
}

/// The groups along one axis, judged.
#[derive(Clone, Debug)]
pub struct Part {
    /// The axis.
    pub axis: Axis,
    /// Error in units of the noise floor, of each token, key, head or channel.
    pub ratios: Vec<f32>,
    /// How wrong each is, in units of its threshold: above 1 is wrong. Groups too small to be judged
    /// have 0.
    pub severities: Vec<f32>,
    /// The worst group of each test that any fails.
    pub(crate) failed: Vec<Failed>,
}

impl Part {
    pub(super) fn new(axis: Axis, groups: &[Group], value: &Value) -> Part {
        let coherence = Coherence::of(groups.iter());
        // The figures of the three tests: size, factor, offset.
        let figures = |(index, g): (usize, &Group)| -> [f64; 3] {
            if g.elements < THRESHOLDS.min_part {
                return [0.0; 3];
            }
            let sigmas = |reason| {
                if value.in_lanes() && g.elements < THRESHOLDS.min_fit {
                    return 0.0;
                }
                let mut sigmas = match reason {
                    Reason::Scale => g.along.sigmas(coherence.along),
                    Reason::Offset => g.offset.sigmas(coherence.offset),
                };
                if sigmas > THRESHOLDS.sigmas / 2.0 {
                    sigmas = sigmas.min(value.clustered(Some((axis, index)), reason));
                }
                sigmas
            };
            [g.ratio(), sigmas(Reason::Scale), sigmas(Reason::Offset)]
        };
        let figures: Vec<[f64; 3]> = groups.iter().enumerate().map(figures).collect();
        let limits = [THRESHOLDS.part, THRESHOLDS.sigmas, THRESHOLDS.sigmas];
        let severity = |figures: &[f64; 3]| {
            figures.iter().zip(limits).map(|(figure, limit)| figure / limit).fold(0.0, f64::max) as f32
        };
        let reasons = [None, Some(Reason::Scale), Some(Reason::Offset)];
        let worst = |(test, reason): (usize, Option<Reason>)| {
            let all = figures.iter().enumerate().map(|(index, figures)| (index, figures[test]));
            let (index, figure) = all.max_by(|a, b| a.1.total_cmp(&b.1))?;
            let failed = Failed { index, reason, figure, factor: 1.0 + groups[index].scale() };
            (figure > limits[test]).then_some(failed)
        };
        Part {
            axis,
            ratios: groups.iter().map(|g| g.ratio() as f32).collect(),
            severities: figures.iter().map(severity).collect(),
            failed: reasons.into_iter().enumerate().filter_map(worst).collect(),
        }
    }

    /// Which groups differ by more than rounding, small ones included.
    pub(crate) fn wrong(&self) -> Vec<bool> {
        let parts = self.ratios.iter().zip(&self.severities);
        parts.map(|(r, s)| f64::from(*r) > THRESHOLDS.whole || *s > 1.0).collect()
    }
}
