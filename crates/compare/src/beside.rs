//! Three-way: two traces of the same tokens, each held against the model.
//!
//! Two engines that disagree do not say which of them is wrong. Replayed from its own inputs, each does.

use std::collections::BTreeMap;

use firstdiff_model::{Model, Program};
use firstdiff_reference::{Computed, Executor, KeyValues, Taps, Weights};
use firstdiff_tensor::{Float, Tensor};
use firstdiff_trace::{Trace, tap};
use serde::Serialize;

use crate::align::Alignment;
use crate::check::{Check, CheckOptions, Verdict, check_judged};
use crate::diff::{Diff, diff};
use crate::replay::Judged;
use crate::{Error, MAX_RATIO};

/// Which side is farther from what the model says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Worse {
    /// The trace under test.
    This,
    /// The one beside it.
    Other,
    /// None of them.
    Neither,
}

/// One tap, over all layers and steps.
#[derive(Clone, Debug, Serialize)]
pub struct BesideRow {
    /// The tap, `*` for the layer.
    pub tap: String,
    /// Largest error of this trace in noise floors, each value replayed from the trace's own inputs.
    pub here: f64,
    /// The same of the other.
    pub there: f64,
    /// Largest relative error of this trace.
    pub error_here: f64,
    /// The same of the other.
    pub error_there: f64,
    /// Which of them rounding does not explain, or explains less.
    pub worse: Worse,
}

/// The outcome of one side.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its verdict.
    pub verdict: Verdict,
    /// The first tap at which it is wrong.
    pub first: Option<String>,
    /// Its arithmetic.
    pub arithmetic: String,
    /// Distance of its logits from those of the float64 reference on the same tokens, from end to end,
    /// relative; rounding included.
    pub logits: Option<f64>,
}

/// Two traces beside each other.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// Which is the worse one.
    pub worse: Worse,
    /// The first tap, in the order of steps and of execution, that rounding does not explain on one side.
    pub first: Option<(usize, String)>,
    /// This side.
    pub this: Side,
    /// The other; none where it was recorded from another model.
    pub other: Option<Side>,
    /// Why the other side was not judged.
    pub refused: Option<String>,
    /// Every tap of both.
    pub rows: Vec<BesideRow>,
    /// The two compared directly.
    #[serde(skip)]
    pub diff: Diff,
}

/// Checks `trace`, and `other` beside it.
///
/// # Errors
/// When one of them cannot be checked, or they are not of the same tokens.
pub fn beside(
    trace: &Trace,
    other: &Trace,
    model: &Model,
    options: &CheckOptions,
) -> Result<(Check, Beside), Error> {
    let diff = diff(trace, other)?;
    let (check, here) = check_judged(trace, model, options)?;
    // The other engine rounds in its own way, whatever was said of this one.
    let options = CheckOptions { arithmetic: None, ..options.clone() };
    let (there, refused) = match check_judged(other, model, &options) {
        Ok(there) => (Some(there), None),
        Err(e @ (Error::OtherWeights { .. } | Error::OtherModel { .. })) => (None, Some(e.to_string())),
        Err(e) => return Err(e),
    };
    let this = side(&check, logits(trace, model, options.memory)?);
    let Some((other_check, there)) = there else {
        let (worse, rows) = (Worse::Neither, vec![]);
        return Ok((check, Beside { worse, first: None, this, other: None, refused, rows, diff }));
    };
    let other = side(&other_check, logits(other, model, options.memory)?);
    let rows = rows(&here, &there, &model.program);
    let wrong = here.iter().chain(&there).filter(|j| j.measured.is_wrong()).map(|j| (j.step, j.op)).min();
    let first = wrong.map(|(step, op)| (step, model.program.ops[op].tap.clone()));
    let worse = worse(&this, &other, &here, &there);
    Ok((check, Beside { worse, first, this, other: Some(other), refused, rows, diff }))
}

fn side(check: &Check, logits: Option<f64>) -> Side {
    Side {
        verdict: check.verdict,
        first: check.findings.first().map(|f| f.tap.clone()),
        arithmetic: check.arithmetic.profile.clone(),
        logits,
    }
}

/// A wrong side is worse than a right one. Of two wrong ones, the one that is farther off in the first
/// wrong value of both; what comes after may be wrong because of it.
fn worse(this: &Side, other: &Side, here: &[Judged], there: &[Judged]) -> Worse {
    match (this.verdict, other.verdict) {
        (Verdict::Diverges, Verdict::Diverges) => {
            let first = |judged: &[Judged]| {
                judged.iter().filter(|j| j.measured.is_wrong()).map(|j| (j.step, j.op)).min()
            };
            let at = first(here).into_iter().chain(first(there)).min();
            let ratio = |judged: &[Judged]| {
                let found = judged.iter().find(|j| Some((j.step, j.op)) == at);
                found.map_or(0.0, |j| j.measured.severity())
            };
            larger(ratio(here), ratio(there))
        }
        (Verdict::Diverges, _) => Worse::This,
        (_, Verdict::Diverges) => Worse::Other,
        _ => Worse::Neither,
    }
}

/// Two severities, of which 1 is the threshold. Both wrong alike, within a factor of 2: neither.
fn larger(here: f64, there: f64) -> Worse {
    match () {
        () if here <= 1.0 && there <= 1.0 => Worse::Neither,
        () if here > 2.0 * there || there <= 1.0 => Worse::This,
        () if there > 2.0 * here || here <= 1.0 => Worse::Other,
        () => Worse::Neither,
    }
}

#[derive(Default)]
struct Largest {
    ratio: [f64; 2],
    error: [f64; 2],
    severity: [f64; 2],
    sides: [bool; 2],
    place: usize,
}

fn rows(here: &[Judged], there: &[Judged], program: &Program) -> Vec<BesideRow> {
    let mut taps: BTreeMap<String, Largest> = BTreeMap::new();
    for (side, judged) in [here, there].into_iter().enumerate() {
        for j in judged {
            let entry = taps.entry(tap::pattern(&program.ops[j.op].tap));
            let row = entry.or_insert_with(|| Largest { place: j.op, ..Largest::default() });
            row.place = row.place.min(j.op);
            row.sides[side] = true;
            row.ratio[side] = row.ratio[side].max(j.measured.ratio.min(MAX_RATIO));
            row.error[side] = row.error[side].max(j.measured.rel_l2.min(MAX_RATIO));
            row.severity[side] = row.severity[side].max(j.measured.severity().min(MAX_RATIO));
        }
    }
    let mut both: Vec<(String, Largest)> = taps.into_iter().filter(|(_, l)| l.sides == [true; 2]).collect();
    both.sort_by_key(|(_, l)| l.place);
    let row = |(tap, l): (String, Largest)| BesideRow {
        tap,
        here: l.ratio[0],
        there: l.ratio[1],
        error_here: l.error[0],
        error_there: l.error[1],
        worse: larger(l.severity[0], l.severity[1]),
    };
    both.into_iter().map(row).collect()
}

/// Distance of the recorded logits from an execution from the tokens alone, in float64.
fn logits(trace: &Trace, model: &Model, memory: usize) -> Result<Option<f64>, Error> {
    let alignment = Alignment::new(trace, &model.program)?;
    let Some(op) = model.program.ops.iter().position(|op| op.tap == "logits") else { return Ok(None) };
    if alignment.placements.iter().all(|step| step[op].is_none()) {
        return Ok(None);
    }
    let weights = Weights::new(&model.checkpoint, Float::F32, memory);
    let executor =
        Executor { program: &model.program, weights: &weights, arithmetic: None, lanes: 0, progress: None };
    let mut distance = Distance { trace, alignment: &alignment, op, error: 0.0, norm: 0.0, failed: None };
    let mut keys = KeyValues::<f64>::new(model.program.ops.len());
    executor.execute(&alignment.steps, &mut keys, &mut distance)?;
    if let Some(error) = distance.failed {
        return Err(error);
    }
    Ok((distance.norm > 0.0).then(|| (distance.error / distance.norm).sqrt().min(MAX_RATIO)))
}

struct Distance<'a> {
    trace: &'a Trace,
    alignment: &'a Alignment,
    op: usize,
    error: f64,
    norm: f64,
    failed: Option<Error>,
}

impl Taps<f64> for Distance<'_> {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, computed: Computed<f64>) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        if computed.op != self.op {
            return Ok(None);
        }
        let step = &self.trace.steps[computed.step];
        match self.alignment.read::<f64>(computed.step, computed.op, "logits", step) {
            Ok(Some(held)) => {
                let input = &self.alignment.steps[computed.step];
                let rows = input.held(held.rows());
                // Of sequences whose first tokens are not in the trace, an execution from the tokens says nothing.
                let known = |(i, row): (usize, &usize)| {
                    let sequence = input.sequence[*row];
                    let known = self.alignment.reach.blind(computed.step, sequence).is_none();
                    (known && *row < computed.exact.rows()).then(|| (held.row(i), computed.exact.row(*row)))
                };
                let pairs = rows.iter().enumerate().filter_map(known);
                for (x, y) in pairs.flat_map(|(x, y)| x.iter().zip(y)) {
                    self.error += if x.is_finite() { (x - y) * (x - y) } else { f64::MAX.sqrt() };
                    self.norm += y * y;
                }
            }
            Ok(None) => {}
            Err(error) => self.failed = Some(error),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_inside_its_floor_is_never_the_worse_one() {
        assert_eq!(larger(0.9, 0.1), Worse::Neither);
        assert_eq!(larger(1.2, 0.9), Worse::This);
        assert_eq!(larger(0.9, 1.2), Worse::Other);
        assert_eq!(larger(10.0, 30.0), Worse::Other);
        assert_eq!(larger(20.0, 30.0), Worse::Neither);
    }
}
