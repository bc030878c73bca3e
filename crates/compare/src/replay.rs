//! Local replay: the trace's values override the reference's, and each is measured on the way.

use std::borrow::Cow;
use std::collections::BTreeMap;

use firstdiff_model::ops::Discrete;
use firstdiff_model::{Axis, OpKind, Program};
use firstdiff_reference::{Choice, Computed, Noise, StepInput, TIE, Taps};
use firstdiff_tensor::Tensor;
use firstdiff_trace::{Step, Trace, tap};
use serde::Serialize;

use crate::Error;
use crate::align::Alignment;
use crate::measure::{Measured, choice};
use crate::structure::{Structure, structure};
use crate::ulps::{Ulps, ulps};

/// A measured tap.
#[derive(Debug)]
pub(crate) struct Judged {
    pub step: usize,
    pub op: usize,
    pub measured: Measured,
    /// What the error looks like; examined for the first few wrong taps of a kind.
    pub structure: Vec<Structure>,
    pub ulps: Option<Ulps>,
}

/// Tokens for which rounding decides a choice.
#[derive(Clone, Debug, Serialize)]
pub struct Ambiguous {
    /// The step.
    pub step: usize,
    /// The choice's tap.
    pub tap: String,
    /// Whether the engine's own choice is recorded, and another one than the reference's. Where it is not
    /// recorded, what follows is judged by both.
    pub recorded: bool,
    /// Positions of the tokens.
    pub tokens: Vec<i64>,
}

/// A trace as recorded values of a program.
pub(crate) struct Replay<'a> {
    pub trace: &'a Trace,
    pub program: &'a Program,
    pub alignment: &'a Alignment,
    pub judged: Vec<Judged>,
    pub ambiguous: Vec<Ambiguous>,
    /// For each step, the operations whose recorded value, or one that it was computed from, is not
    /// finite: what comes after a NaN is no finding of its own.
    poisoned: Vec<Vec<bool>>,
    /// An error of ours, kept while the executor is stopped.
    pub failed: Option<Error>,
}

/// Leaves the structure of the first few wrong taps of a kind: parts of a replay that run side by side each
/// examine as many.
pub(crate) fn leave_examined(judged: &mut [Judged], program: &Program) {
    let mut examined: BTreeMap<String, usize> = BTreeMap::new();
    for j in judged.iter_mut() {
        let count = examined.entry(tap::pattern(&program.ops[j.op].tap)).or_default();
        if *count >= EXAMINED {
            j.structure.clear();
            j.ulps = None;
        } else if !j.structure.is_empty() {
            *count += 1;
        }
    }
}

impl<'a> Replay<'a> {
    pub fn new(trace: &'a Trace, program: &'a Program, alignment: &'a Alignment) -> Self {
        let poisoned = vec![vec![false; program.ops.len()]; trace.steps.len()];
        Replay { trace, program, alignment, judged: vec![], ambiguous: vec![], poisoned, failed: None }
    }
}

/// Wrong taps of one kind whose structure is examined: a bug looks alike in every layer.
const EXAMINED: usize = 3;

impl Replay<'_> {
    /// Whether the structure of a wrong tap is to be examined.
    fn examine(&self, name: &str) -> bool {
        let pattern = tap::pattern(name);
        let wrong =
            |j: &&Judged| !j.structure.is_empty() && tap::pattern(&self.program.ops[j.op].tap) == pattern;
        self.judged.iter().filter(wrong).count() < EXAMINED
    }

    /// Whether a value was computed from one that is not finite, in this step or by way of a cache.
    fn inherits_poison(&self, op: usize, step: usize) -> bool {
        let cached = self.program.ops[op].kind.state().is_some();
        let earlier = cached && step.checked_sub(1).is_some_and(|s| self.poisoned[s][op]);
        earlier || self.program.ops[op].inputs.iter().any(|v| self.poisoned[step][v.0])
    }

    /// A recorded choice, compared. Behind a value that is not finite it is no finding of its own.
    fn chosen(
        &mut self,
        op: usize,
        step: usize,
        computed: &Computed<f64>,
        value: Tensor<f64>,
        kind: Discrete,
    ) -> Tensor<f64> {
        if self.poisoned[step][op] {
            return value;
        }
        let choice::Compared { measured, value, ambiguous } =
            choice::compare(value, computed.exact, computed.choice, kind);
        self.note_ambiguous(op, step, value.rows(), ambiguous, true);
        self.judged.push(Judged { step, op, measured, structure: vec![], ulps: None });
        value
    }

    /// Rows where rounding decides a choice that is not recorded.
    fn open(&mut self, op: usize, step: usize, choice: &Choice) {
        let k = match &self.program.ops[op].kind {
            OpKind::TopK(top) => top.k,
            OpKind::IndexTopK(top) => top.k,
            _ => return,
        };
        let rows = (0..choice.rows()).filter(|&row| choice.margin(row, k) <= TIE).collect();
        self.note_ambiguous(op, step, choice.rows(), rows, false);
    }

    fn note_ambiguous(&mut self, op: usize, step: usize, of: usize, rows: Vec<usize>, recorded: bool) {
        if rows.is_empty() {
            return;
        }
        let positions = &self.trace.steps[step].positions;
        let positions = &positions[positions.len().saturating_sub(of)..];
        let tokens = rows.iter().filter_map(|&row| positions.get(row).copied()).collect();
        self.ambiguous.push(Ambiguous { step, tap: self.program.ops[op].tap.clone(), recorded, tokens });
    }
}

/// A projection's channels are heads for the operation that reads it: seen as such, unless its
/// noise is known for whole tokens only.
pub(crate) fn by_head<'v, 'e>(
    program: &Program,
    op: usize,
    value: Cow<'v, Tensor<f64>>,
    exact: Cow<'e, Tensor<f64>>,
    noise: &Noise<f64>,
) -> (Vec<Axis>, Cow<'v, Tensor<f64>>, Cow<'e, Tensor<f64>>) {
    let axes = &program.ops[op].axes;
    let reader = program.ops.iter().find(|r| r.inputs.first().is_some_and(|v| v.0 == op));
    if let (&[Axis::Tokens, Axis::Channels(width)], Some(reader)) = (axes.as_slice(), reader)
        && let [.., Axis::Heads(heads), Axis::Channels(dim)] = *reader.axes
        && heads * dim == width
        && noise.along.is_empty()
    {
        let shape = [value.rows(), heads, dim];
        let view = |t: &Tensor<f64>| t.clone().reshape(shape);
        if let (Ok(value), Ok(exact)) = (view(&value), view(&exact)) {
            let axes = vec![Axis::Tokens, Axis::Heads(heads), Axis::Channels(dim)];
            return (axes, Cow::Owned(value), Cow::Owned(exact));
        }
    }
    (axes.clone(), value, exact)
}

/// The input rows of a recorded step.
pub(crate) fn input(step: &Step) -> StepInput {
    StepInput {
        token_ids: step.token_ids.clone(),
        // The trace reader has checked that positions fit.
        positions: step.positions.iter().map(|&p| p as u32).collect(),
        sequence: step.sequence.clone(),
    }
}

impl Replay<'_> {
    /// Whether any value was not finite, or follows from one.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.iter().flatten().any(|&p| p)
    }

    fn read(&mut self, op: usize, step: usize) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        let name = &self.program.ops[op].tap;
        match self.alignment.read::<f64>(step, op, name, &self.trace.steps[step]) {
            Ok(value) => Ok(value),
            Err(Error::Trace(e)) => Err(e.into()),
            Err(e) => {
                let (tap, reader) = (name.clone(), "the comparison".to_string());
                let (found, expected) = (vec![], e.to_string());
                self.failed = Some(e);
                Err(firstdiff_reference::Error::Shape { step, tap, found, reader, expected })
            }
        }
    }
}

impl Taps<f64> for Replay<'_> {
    fn start(&mut self, op: usize, step: usize) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        self.read(op, step)
    }

    fn recorded(&self, op: usize, step: usize) -> bool {
        self.alignment.placements[step][op].is_some()
    }

    fn visit(&mut self, computed: Computed<f64>) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        let op = &self.program.ops[computed.op];
        let poisoned = self.inherits_poison(computed.op, computed.step);
        self.poisoned[computed.step][computed.op] = poisoned;
        let Some(mut value) = self.read(computed.op, computed.step)? else {
            if let Some(choice) = computed.choice {
                self.open(computed.op, computed.step, choice);
            }
            return Ok(None);
        };
        if let Some(kind) = op.kind.discrete() {
            return Ok(Some(self.chosen(computed.op, computed.step, &computed, value, kind)));
        }
        let Some(noise) = computed.noise.filter(|_| !value.is_empty()) else { return Ok(Some(value)) };
        let most = computed.exact.shape();
        if most.len() != value.shape().len() || most.iter().zip(value.shape()).any(|(most, n)| n > most) {
            let inputs: Vec<&str> = op.inputs.iter().map(|v| self.program.ops[v.0].tap.as_str()).collect();
            return Err(firstdiff_reference::Error::Shape {
                step: computed.step,
                tap: op.tap.clone(),
                found: value.shape().to_vec(),
                reader: "the comparison".into(),
                expected: format!("at most {most:?}, which is what follows from {}", inputs.join(" and ")),
            });
        }
        let (exact, noise) = last(Cow::Borrowed(computed.exact), noise, value.shape());
        if matches!(op.kind, OpKind::AttnScores(_)) {
            unmask(&mut value, &exact);
        }
        if poisoned {
            forget_poisoned(&mut value, &exact);
        }
        let (axes, view, exact) = by_head(self.program, computed.op, Cow::Borrowed(&value), exact, &noise);
        let measured = Measured::new(&view, &exact, &noise, &axes);
        let (mut found, mut distances) = (vec![], None);
        if measured.is_wrong() && measured.non_finite == 0 && self.examine(&op.tap) {
            found = structure(&view, &exact, &noise, &axes);
            distances = ulps(&view, &exact, &noise);
        }
        // What is not finite cannot be computed on with: downstream is judged on the exact value.
        if measured.non_finite > 0 {
            self.poisoned[computed.step][computed.op] = true;
            make_finite(&mut value, &exact);
        }
        self.judged.push(Judged {
            step: computed.step,
            op: computed.op,
            measured,
            structure: found,
            ulps: distances,
        });
        Ok(Some(value))
    }
}

/// Puts the exact value in place of rows, along the last axis, that hold something that is not finite: their other
/// elements may follow from it (a norm makes zeros of them).
fn forget_poisoned(recorded: &mut Tensor<f64>, exact: &Tensor<f64>) {
    let width = recorded.shape().last().copied().unwrap_or(1).max(1);
    for (row, exact) in recorded.data_mut().chunks_mut(width).zip(exact.data().chunks(width)) {
        if row.iter().any(|x| !x.is_finite()) {
            row.copy_from_slice(exact);
        }
    }
}

/// Puts the exact value where the recorded one is not finite.
fn make_finite(recorded: &mut Tensor<f64>, exact: &Tensor<f64>) {
    for (x, y) in recorded.data_mut().iter_mut().zip(exact.data()) {
        if !x.is_finite() && y.is_finite() {
            *x = *y;
        }
    }
}

/// Some engines record scores after the mask: huge negative numbers say nothing about the product.
pub(crate) fn unmask(recorded: &mut Tensor<f64>, exact: &Tensor<f64>) {
    for (x, y) in recorded.data_mut().iter_mut().zip(exact.data()) {
        if *x == f64::NEG_INFINITY || *x < -1e4 && *x < -100.0 * y.abs() {
            *x = *y;
        }
    }
}

/// The part of the exact value, and of its noise, that was recorded: the last rows or keys.
pub(crate) fn last<'e>(
    exact: Cow<'e, Tensor<f64>>,
    noise: Noise<f64>,
    shape: &[usize],
) -> (Cow<'e, Tensor<f64>>, Noise<f64>) {
    if exact.shape() == shape {
        return (exact, noise);
    }
    let cut = |t: &Tensor<f64>| tail(t, shape);
    let variance = Tensor::new(exact.shape().to_vec(), noise.variance).map(|v| cut(&v).into_data());
    let variance = variance.unwrap_or_default();
    let rows = |s: &[usize]| s[..s.len().saturating_sub(1)].to_vec();
    let by_row = |sums: Vec<f64>| {
        let sums = Tensor::new(rows(exact.shape()), sums).map(|a| tail(&a, &rows(shape)).into_data());
        sums.unwrap_or_default()
    };
    let (along, factor) = (by_row(noise.along), by_row(noise.factor));
    let lanes = noise.lanes.iter().map(cut).collect();
    (Cow::Owned(cut(&exact)), Noise { variance, lanes, along, factor, ..noise })
}

/// The last elements along every axis.
fn tail(t: &Tensor<f64>, shape: &[usize]) -> Tensor<f64> {
    let mut out = Tensor::zeros(shape.to_vec());
    let mut index = vec![0usize; shape.len()];
    for x in out.data_mut() {
        let mut offset = 0;
        for (axis, &i) in index.iter().enumerate() {
            let full = t.shape()[axis];
            offset = offset * full + i + full.saturating_sub(shape[axis]);
        }
        *x = t.data()[offset];
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_taken_along_every_axis() {
        let t = Tensor::new([2, 3], (0..6).map(f64::from).collect()).unwrap();
        assert_eq!(tail(&t, &[1, 2]).data(), [4.0, 5.0]);
        assert_eq!(tail(&t, &[2, 3]), t);
    }

    #[test]
    fn a_row_in_which_an_infinity_goes_on_says_nothing_of_its_own() {
        let mut recorded = Tensor::new([2, 2], vec![0.0, f64::NAN, 5.0, 6.0]).unwrap();
        let exact = Tensor::new([2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        forget_poisoned(&mut recorded, &exact);
        assert_eq!(recorded.data(), [1.0, 2.0, 5.0, 6.0]);
    }
}
