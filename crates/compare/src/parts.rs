//! Which operations are replayed, and how a replay is cut so that parts of it run side by side.
//!
//! Every operation starts from recorded values, so a program may be cut wherever all values that cross the cut are
//! recorded in every step: what comes after it does not depend on what was executed before. A part gives the same
//! numbers alone as in the whole, bit for bit.

use std::collections::BTreeSet;
use std::ops::Range;

use firstdiff_model::{Model, OpKind, Program};
use firstdiff_trace::tap;
use serde::Serialize;

use crate::Error;
use crate::align::Alignment;

/// Layers of a model that were looked at, of how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayersChecked {
    /// Their numbers.
    pub checked: Vec<usize>,
    /// Layers of the model.
    pub of: usize,
}

/// The operations that are executed.
pub(crate) struct Chosen {
    /// In order of execution.
    pub ops: Vec<usize>,
    /// Those that are asked for.
    pub layers: Option<LayersChecked>,
}

/// Chooses the operations of `layers`; where none are given, those with a recorded value, and those that one follows
/// from. What layers read from other layers must be recorded, or is computed in its turn: then the weights for it must
/// be here too.
pub(crate) fn choose(
    model: &Model,
    alignment: &Alignment,
    layers: Option<&[Range<usize>]>,
) -> Result<Chosen, Error> {
    let program = &model.program;
    let Some(layers) = layers else {
        let recorded = (0..program.ops.len()).filter(|&op| alignment.is_recorded(op)).collect();
        return Ok(Chosen { ops: with_inputs(program, recorded, |_| true), layers: None });
    };
    let of = program.ops.iter().filter_map(|op| tap::split(&op.tap).0).max().map_or(0, |layer| layer + 1);
    if let Some(range) = layers.iter().find(|range| range.end > of || range.is_empty()) {
        return Err(Error::NoSuchLayer { layer: range.end.saturating_sub(1), layers: of });
    }
    let asked = |layer: usize| layers.iter().any(|range| range.contains(&layer));
    let inside = |op: usize| tap::split(&program.ops[op].tap).0.is_some_and(asked);
    let asked_for = (0..program.ops.len()).filter(|&op| inside(op)).collect();
    let ops = with_inputs(program, asked_for, |input| !starts(program, alignment, input));
    for &op in &ops {
        model.need(&program.ops[op]).map_err(|needed| match inside(op) {
            true => Error::from(needed),
            // Nothing of that layer would be needed, had what is read of it been recorded.
            false => Error::NeededOutside { tap: entrance(program, &ops, inside), needed: Box::new(needed) },
        })?;
    }
    let checked = (0..of).filter(|&layer| asked(layer)).collect();
    Ok(Chosen { ops, layers: Some(LayersChecked { checked, of }) })
}

/// One operation, and what has to be computed for it.
pub(crate) fn only(program: &Program, alignment: &Alignment, op: usize) -> Chosen {
    Chosen { ops: with_inputs(program, vec![op], |input| !starts(program, alignment, input)), layers: None }
}

/// These operations and those that they read, as far as `follow` says so, in order of execution.
fn with_inputs(program: &Program, ops: Vec<usize>, follow: impl Fn(usize) -> bool) -> Vec<usize> {
    let (mut found, mut pending): (BTreeSet<usize>, _) = (ops.iter().copied().collect(), ops);
    while let Some(op) = pending.pop() {
        for input in program.ops[op].inputs.iter().map(|v| v.0) {
            if follow(input) && found.insert(input) {
                pending.push(input);
            }
        }
    }
    found.into_iter().collect()
}

/// The first value from outside that is read inside, and had to be computed.
fn entrance(program: &Program, ops: &[usize], inside: impl Fn(usize) -> bool) -> String {
    let read = |op: &usize| program.ops[*op].inputs.iter().map(|input| input.0);
    let computed = |input: &usize| !inside(*input) && ops.binary_search(input).is_ok();
    let found = ops.iter().filter(|op| inside(**op)).flat_map(read).find(computed);
    found.map(|op| program.ops[op].tap.clone()).unwrap_or_default()
}

/// Whether a replay may start from the value of an operation: it is recorded in every step, and used as it is recorded.
fn starts(program: &Program, alignment: &Alignment, op: usize) -> bool {
    let kind = &program.ops[op].kind;
    // Choices are completed and masked scores replaced, when they are compared.
    !matches!(kind, OpKind::AttnScores(_))
        && kind.discrete().is_none()
        && alignment.placements.iter().all(|step| step[op].is_some())
}

/// Cuts `ops` into at most about `count` parts that do not depend on one another.
pub(crate) fn cut(program: &Program, alignment: &Alignment, ops: &[usize], count: usize) -> Vec<Vec<usize>> {
    let smallest = ops.len().div_ceil(count.max(1));
    let last_uses = program.last_uses(ops);
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    // The last place where a value is read that is not recorded: no cut before that.
    let mut open_until = 0;
    for &op in ops {
        if part.len() >= smallest && open_until < op {
            parts.push(std::mem::take(&mut part));
        }
        part.push(op);
        if last_uses[op] > op && !starts(program, alignment, op) {
            open_until = open_until.max(last_uses[op]);
        }
    }
    parts.push(part);
    parts
}
