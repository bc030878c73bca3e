//! Parameters that the engine never loaded, told from what it computed: before any hypothesis about an
//! operation is worth a thought.

use std::collections::BTreeMap;

use firstdiff_compare::{Check, Evidence, Unloaded};
use firstdiff_model::OpKind;
use firstdiff_trace::tap;

use crate::edit::Edit;
use crate::rank::{MARGIN, Options, ROUNDING, trial};
use crate::trial::{INSIDE, Places, Trial};
use crate::{Error, scene};

/// Finds parameters that hold one number throughout, as the engine's wrong values show: a bias of zeros, a norm's
/// weight of ones. Those that share layers are listed together.
///
/// # Errors
/// When a recorded value or a weight cannot be read.
pub fn unloaded(check: &Check, evidence: &Evidence, options: Options) -> Result<Vec<Unloaded>, Error> {
    Ok(within(&trial(evidence, options), check)?.0)
}

/// The same within the trial's budget; and whether that was enough to look at all.
pub(crate) fn within(trial: &Trial, check: &Check) -> Result<(Vec<Unloaded>, bool), Error> {
    let evidence = trial.evidence;
    let mut complete = true;
    let program = &evidence.model.program;
    // The first wrong step of each operation says it.
    let mut wrong: BTreeMap<usize, usize> = BTreeMap::new();
    for finding in &check.findings {
        for (op, step) in evidence.covered(finding) {
            let first = wrong.entry(op).or_insert(step);
            *first = step.min(*first);
        }
    }
    // Parameter without its layer, what it holds, how many there are -> layers.
    let mut found: BTreeMap<(String, &'static str, usize), Vec<usize>> = BTreeMap::new();
    for (&op, &step) in &wrong {
        for (part, value, holds) in candidates(&program.ops[op].kind) {
            let constant = constant(trial, op, step, &part, value)?;
            complete &= constant.is_some();
            if constant == Some(true) {
                let (layer, short) = tap::split(&program.ops[op].tap);
                let of = program.ops.iter().filter(|op| scene::short(op) == short).count();
                found.entry((own(&part).to_string(), holds, of)).or_default().extend(layer);
                break;
            }
        }
    }
    let mut lines: Vec<Unloaded> = Vec::new();
    for ((name, holds, of), layers) in found {
        match lines.iter_mut().find(|l| l.layers == layers && l.holds == holds && l.of == of) {
            Some(line) => line.parameters.push(name),
            None => lines.push(Unloaded { parameters: vec![name], layers, of, holds }),
        }
    }
    Ok((lines, complete))
}

/// Parameters of an operation, the number each would hold, and its word. Not matrices: with zeros for one, the output
/// is what a kernel leaves that never wrote it.
fn candidates(kind: &OpKind) -> Vec<(String, f32, &'static str)> {
    match kind {
        OpKind::Linear(linear) => linear.bias.iter().map(|b| (b.clone(), 0.0, "zero")).collect(),
        OpKind::RmsNorm(norm) => vec![(norm.weight.clone(), 1.0, "one")],
        _ => vec![],
    }
}

/// Whether this parameter alone, held at `value`, leaves nothing but rounding of an error far beyond it; `None` where
/// the budget does not have the work.
fn constant(trial: &Trial, op: usize, step: usize, name: &str, value: f32) -> Result<Option<bool>, Error> {
    let name = name.to_string();
    let edit = Edit::new("").weight(move |w| (w.name == name).then(|| vec![value; w.shape.iter().product()]));
    let places = Places::from([(op, step)]);
    let Some(left) = trial.residual(&edit, &places, f64::INFINITY)? else { return Ok(None) };
    if left > INSIDE {
        return Ok(Some(false));
    }
    let without = trial.residual(&Edit::new(""), &places, f64::INFINITY)?;
    Ok(without.map(|without| without > MARGIN * left.max(ROUNDING)))
}

/// `k_proj.bias` of `model.layers.0.self_attn.k_proj.bias`.
fn own(name: &str) -> &str {
    name.rmatch_indices('.').nth(1).map_or(name, |(at, _)| &name[at + 1..])
}
