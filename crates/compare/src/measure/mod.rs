//! One recorded value against the exact one, in units of what rounding explains.
//!
//! The unit is the root of the expected squared deviation, element by element (see
//! `firstdiff_reference::Noise`): one correct rounding never exceeds it. Three questions are asked of
//! the whole value and of its parts (each token, key, head and channel): is the error larger than
//! rounding makes it; is there a common factor; is there a common offset? The last two hide in every
//! norm. docs/VERDICTS.md derives the limits.

pub(crate) mod choice;
mod group;
mod sums;
mod why;

use firstdiff_model::Axis;
use firstdiff_reference::Noise;
use firstdiff_tensor::Tensor;

pub use choice::Choices;
pub use group::Part;
use group::{Coherence, Reason};
pub use why::{Test, Why};

/// Reported where the true ratio is larger, or infinite because the value may not round at all.
pub const MAX_RATIO: f64 = 1e9;

/// Where healthy ends, in units of the noise floor.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Root mean square over the whole value.
    pub whole: f64,
    /// Root mean square over one part.
    pub part: f64,
    /// A common factor or offset, in its standard deviations.
    pub sigmas: f64,
    /// Parts with fewer elements are not judged on their own.
    pub min_part: usize,
    /// Parts with fewer elements are not searched for factors and offsets where their variance is
    /// estimated from a few lanes.
    pub min_fit: usize,
}

/// The thresholds used; docs/VERDICTS.md derives them.
pub const THRESHOLDS: Thresholds =
    Thresholds { whole: 2.0, part: 4.0, sigmas: 10.0, min_part: 16, min_fit: 64 };

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
    /// Elements of a cache that are not the nearest neighbour, in its format, of what was written into it.
    pub farther: usize,
    /// The share of errors that point towards zero.
    pub towards_zero: f64,
    /// The parts along each axis.
    pub parts: Vec<Part>,
    /// For a choice, how it differs; `ratio` is then how far the reference prefers its own, 2 being five
    /// deviations of what rounding did to the scores.
    pub choices: Option<Choices>,
}

impl Measured {
    /// Measures `recorded` against `exact`, both in the same axes.
    pub(crate) fn new(
        recorded: &Tensor<f64>,
        exact: &Tensor<f64>,
        noise: &Noise<f64>,
        axes: &[Axis],
    ) -> Measured {
        let value = sums::Value::new(recorded, exact, noise, axes);
        let sums = value.sums();
        let whole = &sums.whole;
        let coherence = Coherence::of(std::iter::once(whole));
        let (scale, mut sigmas) = (whole.scale(), whole.scale_sigmas(&coherence));
        if sigmas > THRESHOLDS.sigmas / 2.0 {
            sigmas = sigmas.min(value.clustered(None, Reason::Scale));
        }
        let parts = sums.parts.iter().map(|(axis, groups)| Part::new(*axis, groups, &value)).collect();
        let norm = whole.exact.sqrt();
        let relative = |x: f64| if norm > 0.0 { x / norm } else { x };
        Measured {
            elements: recorded.len(),
            rel_l2: relative(whole.error.sqrt()),
            max_abs: whole.max_abs,
            cosine: whole.cosine(),
            noise_rel_l2: relative(whole.variance.sqrt()),
            ratio: if whole.non_finite > 0 { MAX_RATIO } else { whole.ratio() },
            scale,
            scale_sigmas: sigmas,
            non_finite: whole.non_finite,
            farther: 0,
            towards_zero: whole.erring[1] as f64 / whole.erring[0].max(1) as f64,
            parts,
            choices: None,
        }
    }

    /// Whether rounding does not explain the value.
    pub fn is_wrong(&self) -> bool {
        self.non_finite > 0 || self.severity() > 1.0
    }

    /// The largest of all ratios, each in units of its own threshold: above 1 is wrong.
    pub fn severity(&self) -> f64 {
        let parts = self.parts.iter().flat_map(|p| &p.severities).map(|s| f64::from(*s)).fold(0.0, f64::max);
        // One is too many, and more are worse.
        let farther =
            if self.farther > 0 { 1.0 + self.farther as f64 / self.elements.max(1) as f64 } else { 0.0 };
        (self.ratio / THRESHOLDS.whole).max(self.scale_sigmas / THRESHOLDS.sigmas).max(parts).max(farther)
    }
}

/// Root of `error / variance`, at most [`MAX_RATIO`].
fn ratio(error: f64, variance: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / variance).sqrt().min(MAX_RATIO) }
}
