//! Which edits are worth measuring: most are far off, and their exact value alone says so.

use firstdiff_compare::MAX_RATIO;
use firstdiff_model::OpKind;
use firstdiff_reference::Predicted;

use crate::Error;
use crate::edit::Edit;
use crate::rank::{FAR, LARGEST};
use crate::scene::Scene;
use crate::trial::{INSIDE, Trial};

/// Edits estimated side by side at most.
const MOST: usize = 16;

/// What the exact value of an edit says.
pub(crate) enum Estimate {
    /// It leaves about so much, in noise floors: far too much.
    Far(f64),
    /// Only measuring tells; the squared error that it leaves, to begin with the best.
    Near(f64),
}

/// What the model itself leaves at the first place of a finding.
pub(crate) struct Screen<'a> {
    trial: &'a Trial<'a>,
    scene: &'a Scene<'a>,
    /// Its residual, measured.
    pub unedited: f64,
    /// Its squared error; none where elements are not finite, or nothing rounds.
    error: Option<f64>,
    /// Error in noise floors of the whole value.
    ratio: f64,
    /// Squared size of the model's value.
    size: f64,
}

impl<'a> Screen<'a> {
    /// `own` is the model's value at that place.
    pub fn new(trial: &'a Trial<'a>, scene: &'a Scene<'a>, own: Predicted<f64>) -> Result<Screen<'a>, Error> {
        let mut screen = Screen { trial, scene, unedited: MAX_RATIO, error: None, ratio: 0.0, size: 0.0 };
        let error = screen.squared_error(own.exact.data());
        let variance: Option<f64> = own.noise.as_ref().map(|n| n.variance.iter().sum());
        screen.size = squared(own.exact.data());
        screen.unedited = trial.left(own)?;
        let (Some(error), Some(variance)) = (error, variance) else { return Ok(screen) };
        // Engines mask scores with large numbers, which count as right and would drown the rest.
        if matches!(trial.evidence.model.program.ops[scene.op].kind, OpKind::AttnScores(_)) {
            return Ok(screen);
        }
        if variance > 0.0 && error > 0.0 {
            screen.ratio = (error / variance).sqrt();
            screen.error = Some(error);
        }
        Ok(screen)
    }

    /// How many edits are estimated side by side: what they change is held in memory once for each.
    pub fn together(&self) -> usize {
        let ops = self.scene.ops.iter().map(|&op| &self.scene.program().ops[op]);
        let sizes = ops.flat_map(|op| op.kind.weights()).map(|(_, shape)| shape.iter().product::<usize>());
        let weights: usize = sizes.filter(|&elements| elements <= LARGEST).sum();
        let values: usize = self.scene.known.values().map(|value| value.len()).sum();
        (LARGEST / (weights + 2 * values).max(1)).clamp(1, MOST)
    }

    /// Whether exact values say nothing here: every edit has to be measured.
    pub fn is_blind(&self) -> bool {
        self.error.is_none()
    }

    /// The residual of an edit that leaves more error than the model itself, or far more than rounding.
    pub fn estimate(&self, edit: &Edit) -> Result<Estimate, Error> {
        let Some(error) = self.error else { return Ok(Estimate::Near(0.0)) };
        let Some(exact) = self.trial.exact(edit, (self.scene.op, self.scene.step), &self.scene.known)? else {
            return Ok(Estimate::Far(MAX_RATIO));
        };
        let Some(left) = self.squared_error(exact.data()) else { return Ok(Estimate::Far(MAX_RATIO)) };
        if left == error {
            return Ok(Estimate::Far(self.unedited));
        }
        let times = (left / error).sqrt();
        // A wrong part may be lost in the rounding of the whole.
        if times >= 1.0 && self.ratio > INSIDE {
            return Ok(Estimate::Far((self.unedited * times).min(MAX_RATIO)));
        }
        // Larger values round more.
        let grown = (squared(exact.data()) / self.size.max(f64::MIN_POSITIVE)).sqrt().max(1.0);
        let floors = self.ratio * times / grown;
        Ok(match floors > FAR {
            true => Estimate::Far((self.unedited * times).max(FAR)),
            false => Estimate::Near(left),
        })
    }

    /// Squared distance from the engine's value; none where shapes differ or an element is not finite.
    fn squared_error(&self, exact: &[f64]) -> Option<f64> {
        let engine = self.scene.engine.data();
        // Engines may record the last rows only.
        let exact = exact.get(exact.len().checked_sub(engine.len())?..)?;
        let sum: f64 = engine.iter().zip(exact).map(|(a, b)| (a - b) * (a - b)).sum();
        sum.is_finite().then_some(sum)
    }
}

fn squared(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum()
}
