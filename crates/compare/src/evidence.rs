//! What a verdict rests on, kept for those who ask why.

use std::borrow::Cow;

use firstdiff_model::ops::Discrete;
use firstdiff_model::{Model, OpKind};
use firstdiff_reference::{Arithmetic, Noise, Predicted, Recorded, StepInput};
use firstdiff_tensor::Tensor;
use firstdiff_trace::{Trace, tap};

use crate::align::Alignment;
use crate::finding::Finding;
use crate::measure::{Measured, choice};
use crate::replay::{Judged, by_head, last, unmask};

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
}

impl<'a> Evidence<'a> {
    pub(crate) fn new(
        trace: &'a Trace,
        model: &'a Model,
        alignment: Alignment,
        steps: Vec<StepInput>,
        arithmetic: Arithmetic,
        judged: &[Judged],
    ) -> Evidence<'a> {
        let mut wrong: Vec<(usize, usize)> =
            judged.iter().filter(|j| j.measured.is_wrong()).map(|j| (j.op, j.step)).collect();
        wrong.sort_unstable_by_key(|&(op, step)| (step, op));
        Evidence { trace, model, steps, arithmetic, alignment, wrong }
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

    /// Holds a recorded value against a prediction.
    ///
    /// # Errors
    /// When the value cannot be read.
    pub fn measure(&self, predicted: Predicted<f64>) -> Result<Option<Measured>, crate::Error> {
        let (op, step) = (predicted.op, predicted.step);
        let value = self.value(op, step)?;
        if let (Some(value), Some(kind)) = (&value, self.model.program.ops[op].kind.discrete()) {
            let (exact, from) = (&predicted.exact, predicted.choice.as_ref());
            // An engine that drops what no row can see any more holds the last columns of a mask.
            let columns = match kind {
                Discrete::Set => value.row_len() == exact.row_len(),
                Discrete::Labels => value.row_len() <= exact.row_len(),
            };
            let fits = columns && value.rows() <= exact.rows();
            return Ok(fits.then(|| choice::compare(value.clone(), exact, from, kind).measured));
        }
        let (Some(mut value), Some(noise)) = (value, predicted.noise) else {
            return Ok(None);
        };
        let rank = |s: &[usize], t: &[usize]| s.len() == t.len() && s.iter().zip(t).all(|(s, t)| s >= t);
        if !rank(predicted.exact.shape(), value.shape()) || noise.variance.len() != predicted.exact.len() {
            return Ok(None);
        }
        let (exact, noise): (_, Noise<f64>) = last(Cow::Owned(predicted.exact), noise, value.shape());
        let program = &self.model.program;
        if matches!(program.ops[op].kind, OpKind::AttnScores(_)) {
            unmask(&mut value, &exact);
        }
        let (axes, view, exact) = by_head(program, op, Cow::Owned(value), exact, &noise);
        Ok(Some(Measured::new(&view, &exact, &noise, &axes)))
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
