//! What a verdict rests on, kept for those who ask why.

use std::borrow::Cow;
use std::collections::BTreeSet;

use firstdiff_model::Model;
use firstdiff_reference::{Arithmetic, Predicted, Recorded, StepInput};
use firstdiff_tensor::Tensor;
use firstdiff_trace::{Trace, tap};

use crate::align::Alignment;
use crate::finding::Finding;
use crate::judge::{Copied, Expected, Judgement, judge};
use crate::measure::Measured;
use crate::replay;
use crate::side_by_side::Replayed;

/// A trace placed on its model, and which of its values are wrong.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The trace.
    pub trace: &'a Trace,
    /// The model.
    pub model: &'a Model,
    /// The input rows of its steps.
    pub steps: Vec<StepInput>,
    /// The arithmetic the verdict rests on.
    pub arithmetic: Arithmetic,
    alignment: Alignment,
    wrong: Vec<(usize, usize)>,
    /// What follows from something that is not finite.
    poisoned: BTreeSet<(usize, usize)>,
}

impl<'a> Evidence<'a> {
    pub(crate) fn new(
        trace: &'a Trace,
        model: &'a Model,
        alignment: Alignment,
        steps: Vec<StepInput>,
        arithmetic: Arithmetic,
        replayed: &Replayed,
    ) -> Evidence<'a> {
        let mut wrong: Vec<(usize, usize)> =
            replayed.judged.iter().filter(|j| j.measured.is_wrong()).map(|j| (j.op, j.step)).collect();
        wrong.sort_unstable_by_key(|&(op, step)| (step, op));
        Evidence { trace, model, steps, arithmetic, alignment, wrong, poisoned: replayed.poisoned.clone() }
    }

    /// Every wrong value that a finding stands for, as operation and step, in order of execution.
    pub fn covered(&self, finding: &Finding) -> Vec<(usize, usize)> {
        let patterns: Vec<String> = finding.taps.iter().map(|t| tap::pattern(t)).collect();
        let ops = &self.model.program.ops;
        self.wrong.iter().copied().filter(|&(op, _)| patterns.contains(&tap::pattern(&ops[op].tap))).collect()
    }

    /// The recorded value of an operation, in its axes; none in a step that the trace does not have.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn value(&self, op: usize, step: usize) -> Result<Option<Tensor<f64>>, crate::Error> {
        let Some(recorded) = self.trace.steps.get(step) else { return Ok(None) };
        self.alignment.read(step, op, &self.model.program.ops[op].tap, recorded)
    }

    fn copied(&self, arithmetic: &Arithmetic, op: usize, step: usize) -> Option<Copied> {
        let recorded = self.trace.steps.get(step)?;
        replay::copied(&self.model.program, &self.alignment, arithmetic, (op, step), recorded)
    }

    /// Judges a recorded tensor against a prediction; none where nothing was recorded, or the prediction has another
    /// shape.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn measure(&self, predicted: Predicted<f64>) -> Result<Option<Measured>, crate::Error> {
        self.measure_in(&self.arithmetic, predicted)
    }

    /// The same in another arithmetic, in which the prediction was made.
    pub(crate) fn measure_in(
        &self,
        arithmetic: &Arithmetic,
        predicted: Predicted<f64>,
    ) -> Result<Option<Measured>, crate::Error> {
        let (op, step) = (predicted.op, predicted.step);
        let Some(recorded) = self.value(op, step)? else { return Ok(None) };
        let expected = Expected {
            exact: Cow::Owned(predicted.exact),
            noise: predicted.noise,
            choice: predicted.choice.as_ref(),
            poisoned: self.poisoned.contains(&(op, step)),
            copied: self.copied(arithmetic, op, step),
            rows: &self.alignment.steps[step],
            part: self.alignment.reach.of(op, step),
        };
        Ok(match judge(&self.model.program, op, recorded, expected) {
            Judgement::Choice(compared) => Some(compared.measured),
            Judgement::Tensor(compared) => Some(compared.measured),
            Judgement::Unjudged(_) | Judgement::DoesNotFit { .. } => None,
        })
    }
}

impl Recorded<f64> for Evidence<'_> {
    fn has(&self, op: usize, step: usize) -> bool {
        self.alignment.placements.get(step).is_some_and(|step| step[op].is_some())
    }

    fn read(&self, op: usize, step: usize) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        self.value(op, step).map_err(|e| match e {
            crate::Error::Trace(e) => e.into(),
            other => firstdiff_reference::Error::Shape {
                step,
                tap: self.model.program.ops[op].tap.clone(),
                found: vec![],
                reader: "the diagnosis".into(),
                expected: other.to_string(),
            },
        })
    }
}
