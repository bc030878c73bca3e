//! Which tests a value failed, with their figures: why it is wrong.

use firstdiff_model::Axis;
use firstdiff_reference::TIE;
use serde::Serialize;

use super::group::Reason;
use super::{Measured, THRESHOLDS};
use crate::place;

/// A test that a value may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// The error, in units of the noise floor.
    NoiseFloor,
    /// A factor common to all elements, in its standard deviations.
    Factor,
    /// An offset common to all elements, in its standard deviations.
    Offset,
    /// Elements that are not finite where the exact value is.
    NotFinite,
    /// A selection: by how many standard deviations of the scores the reference prefers its own.
    Selection,
    /// A copy in a shorter format: elements that are not the nearest number of that format.
    Nearest,
}

/// A test that a value failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// Which.
    pub test: Test,
    /// The axis of the part that failed it: `token`, `head`; none where the whole tensor did.
    pub axis: Option<&'static str>,
    /// Which part along the axis, as `where` counts them: tokens by their position.
    pub index: Option<i64>,
    /// The figure.
    pub value: f64,
    /// The largest figure that rounding explains.
    pub limit: f64,
    /// The factor, where that is the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
}

impl Measured {
    /// The tests that the value failed: of the whole, then of its parts, the farthest beyond its limit first. Of an
    /// axis, the worst part for each test. `number` says how the parts along an axis are counted.
    pub(crate) fn why(&self, number: &dyn Fn(Axis, usize) -> i64) -> Vec<Why> {
        let whole = |test, value, limit| Why { test, axis: None, index: None, value, limit, factor: None };
        if self.non_finite > 0 {
            return vec![whole(Test::NotFinite, self.non_finite as f64, 0.0)];
        }
        if let Some(choices) = &self.choices {
            // Without scores that decide, nothing explains another selection.
            let value = choices.preferred_by.unwrap_or(super::MAX_RATIO);
            return vec![whole(Test::Selection, value, TIE)];
        }
        let mut why = Vec::new();
        if self.ratio > THRESHOLDS.whole {
            why.push(whole(Test::NoiseFloor, self.ratio, THRESHOLDS.whole));
        }
        if self.scale_sigmas > THRESHOLDS.sigmas {
            let factor = Some(1.0 + self.scale);
            why.push(Why { factor, ..whole(Test::Factor, self.scale_sigmas, THRESHOLDS.sigmas) });
        }
        if self.farther > 0 {
            why.push(whole(Test::Nearest, self.farther as f64, 0.0));
        }
        let mut of_parts: Vec<Why> = Vec::new();
        for part in &self.parts {
            of_parts.extend(part.failed.iter().map(|failed| {
                let (test, limit) = match failed.reason {
                    None => (Test::NoiseFloor, THRESHOLDS.part),
                    Some(Reason::Scale) => (Test::Factor, THRESHOLDS.sigmas),
                    Some(Reason::Offset) => (Test::Offset, THRESHOLDS.sigmas),
                };
                Why {
                    test,
                    axis: Some(place::noun(part.axis)),
                    index: Some(number(part.axis, failed.index)),
                    value: failed.figure,
                    limit,
                    factor: (test == Test::Factor).then_some(failed.factor),
                }
            }));
        }
        of_parts.sort_by(|a, b| (b.value / b.limit).total_cmp(&(a.value / a.limit)));
        why.extend(of_parts);
        why
    }
}
