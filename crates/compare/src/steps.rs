//! The steps of a trace as the executor sees them: whose keys are read, and which rows are there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use firstdiff_model::{Axis, Program};
use firstdiff_reference::{Fork, KeyAxes, KeyLabel, StepInput};
use firstdiff_trace::{Step, TapInfo, Trace, tap};

use crate::Error;
use crate::align::{label, only};
use crate::history::Incomplete;
use crate::place_axes::{Placement, Wanted};

/// The input rows of the steps, with what the trace declares of them.
pub(crate) fn inputs(trace: &Trace) -> Vec<StepInput> {
    trace.steps.iter().map(input).collect()
}

/// The input rows of a recorded step.
fn input(step: &Step) -> StepInput {
    let axis = |axis: &firstdiff_trace::KeyAxis| -> Arc<[KeyLabel]> { axis.iter().map(label).collect() };
    StepInput {
        token_ids: step.token_ids.clone(),
        // The trace reader has checked that positions fit.
        positions: step.positions.iter().map(|&p| p as u32).collect(),
        sequence: step.sequence.clone(),
        keys: KeyAxes {
            step: step.keys.step.as_ref().map(axis),
            layers: step.keys.layers.iter().map(|(layer, keys)| (*layer, axis(keys))).collect(),
        },
        forks: step
            .forks
            .iter()
            .map(|f| Fork { sequence: f.sequence, parent: f.parent, length: f.length })
            .collect(),
        rows: rows_of_logits(step),
    }
}

/// The rows that what comes after the last cache holds where it holds fewer than all: those declared, or the last one of
/// each sequence, in the order in which sequences first appear. `None`: the last ones.
pub(crate) fn rows_of_logits(step: &Step) -> Option<Vec<usize>> {
    if let Some(rows) = &step.logits_rows {
        return Some(rows.clone());
    }
    let sequences = step.sequences();
    if sequences.len() < 2 {
        return None;
    }
    let last = |q: &i64| step.sequence.iter().rposition(|r| r == q);
    Some(sequences.iter().filter_map(last).collect())
}

/// Refuses fewer rows than all where nothing says which they are.
pub(crate) fn check_rows(
    step: &Step,
    input: &StepInput,
    tap: &str,
    placement: &Placement,
    axes: &[Axis],
) -> Result<(), Error> {
    let Some(axis) = axes.iter().position(|axis| *axis == Axis::Tokens) else { return Ok(()) };
    let (held, all) = (placement.shape[axis], step.rows());
    let Some(rows) = input.rows.as_ref().filter(|rows| held < all && rows.len() != held) else {
        return Ok(());
    };
    let (file, tap, sequences) = (step.path().into(), tap.to_string(), step.sequences().len());
    Err(match step.logits_rows.is_some() {
        true => Error::RowsDeclared { file, tap, held, declared: rows.len(), all },
        false => Error::RowsOfBatch { file, tap, held, sequences, all },
    })
}

/// Gives steps of one incomplete sequence the key axis that their caches have: where these hold more keys than the trace
/// has rows, the first are keys that no step wrote.
pub(crate) fn imply_axes(
    trace: &Trace,
    program: &Program,
    incomplete: &[Vec<Incomplete>],
    steps: &mut [StepInput],
) {
    if incomplete.iter().all(Vec::is_empty) {
        return;
    }
    let mut with_keys: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, op) in program.ops.iter().enumerate() {
        if let (Some(layer), true) = (tap::split(&op.tap).0, op.axes.contains(&Axis::Keys)) {
            with_keys.entry(layer).or_default().push(index);
        }
    }
    // From which position on a layer's cache has shown the keys of a sequence.
    let mut first: HashMap<(usize, i64), u32> = HashMap::new();
    for (number, step) in steps.iter_mut().enumerate() {
        let Some(of) = only(step, &incomplete[number]) else { continue };
        let Some(end) = of.shown.last().map(|last| last + 1) else { continue };
        for (&layer, ops) in &with_keys {
            if step.keys.of(Some(layer)).is_some() {
                continue;
            }
            let recorded = &trace.steps[number];
            let held = ops.iter().filter_map(|&op| {
                let op = &program.ops[op];
                keys_held(recorded.taps().get(&op.tap)?, &op.axes)
            });
            let held = held.max().filter(|&k| k > 0);
            let from = match held.map(u32::try_from) {
                Some(Ok(k)) if k == end => Some(0),
                // Which keys fewer are, nothing says; more are refused where the tap is placed.
                Some(_) => None,
                None => first.get(&(layer, of.sequence)).copied(),
            };
            let Some(from) = from else { continue };
            first.entry((layer, of.sequence)).and_modify(|f| *f = from.min(*f)).or_insert(from);
            let labels = (from..end).map(|position| KeyLabel { sequence: of.sequence, position });
            step.keys.layers.insert(layer, labels.collect());
        }
    }
}

/// How many keys a recorded cache, or recorded scores, hold.
fn keys_held(info: &TapInfo, axes: &[Axis]) -> Option<usize> {
    match axes {
        [Axis::Keys, rest @ ..] => {
            let width = rest.iter().map(|axis| match axis {
                Axis::Heads(n) | Axis::Channels(n) => *n,
                _ => 1,
            });
            info.elements().checked_div(width.product())
        }
        [.., Axis::Keys] => info.shape.last().copied(),
        _ => None,
    }
}

/// Why a recorded shape does not fit.
pub(crate) fn misfit(
    step: &Step,
    input: &StepInput,
    tap: &str,
    info: &TapInfo,
    axes: &[Axis],
    wanted: &Wanted,
) -> Error {
    let (file, found, expected) = (step.path().into(), info.shape.clone(), wanted.extents.clone());
    let rows = step.rows();
    let tap_name = tap.to_string();
    if matches!(axes, [Axis::Keys, ..] | [.., Axis::Keys]) {
        let keys = keys_held(info, axes).unwrap_or(0);
        let declared = input.keys.of(tap::split(tap).0).is_some() && !step.keys.is_empty();
        let known = axes.iter().position(|a| *a == Axis::Keys).map_or(0, |axis| expected[axis]);
        if declared && keys != known {
            return Error::KeysDeclared { file, tap: tap_name, keys, declared: known };
        }
        if keys > known {
            return Error::MoreKeys { file, tap: tap_name, keys, known };
        }
    }
    if axes.first() == Some(&Axis::Tokens) {
        let width: usize = expected[1..].iter().product();
        let count = info.elements();
        let held = count.checked_div(width).filter(|held| held * width == count);
        let squeezed: Vec<usize> = found.iter().copied().filter(|&d| d != 1).collect();
        let batch = found.len() > expected.len() || squeezed.len() > expected.len();
        match held {
            Some(held) if held == rows + 1 => return Error::OneRowMore { file, tap: tap_name, rows },
            Some(held) if batch && (held == rows && wanted.sequences < 2 || held > rows) => {
                return Error::Batch { file, tap: tap_name, found };
            }
            _ => {}
        }
    }
    Error::Shape { file, tap: tap_name, found, expected }
}
