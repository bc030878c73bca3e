//! Which hypothesis is named: the one that explains everything the finding covers, if nothing else comes near.

use std::collections::BTreeMap;

use firstdiff_compare::{Cause, Check, Element, Evidence, Finding, Rejected};
use firstdiff_reference::Weights;
use rayon::prelude::*;

use crate::Error;
use crate::edit::Edit;
use crate::hypotheses::{HYPOTHESES, Hypothesis};
use crate::loading::unloaded;
use crate::scene::Scene;
use crate::screen::Screen;
use crate::trial::{INSIDE, Places, Trial};

/// How to diagnose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of dequantised weights to keep.
    pub memory: usize,
    /// Random executions for the noise of inner values.
    pub lanes: usize,
    /// Hypotheses that do not explain a finding, listed beside the cause: this many, the nearest first.
    pub listed: usize,
}

/// How much worse everything else must be than the cause that is named.
pub(crate) const MARGIN: f64 = 10.0;
/// A residual counts as at least this: one correct rounding leaves about half a floor, and less is luck.
pub(crate) const ROUNDING: f64 = 0.5;
/// A rival leaves less than this part of the error that the model itself leaves.
const RIVAL: f64 = 0.9;
/// A cause must explain at least this many times what it leaves.
const LEAST: f64 = 2.0;
/// Residuals that differ by less than this part are one.
const SAME: f64 = 1e-3;
/// Elements of the largest weight that edits may replace: a copy of it takes four times as many bytes.
pub(crate) const LARGEST: usize = 1 << 26;
/// Beyond so many floors an edit is not measured exactly: ten times the margin.
pub(crate) const FAR: f64 = 10.0 * MARGIN * INSIDE;

/// Looks for the cause of every finding of `check`, in order of execution. A cause that also explains later
/// findings takes them in.
///
/// # Errors
/// When a recorded value or a weight cannot be read.
pub fn diagnose(check: &mut Check, evidence: &Evidence, options: Options) -> Result<(), Error> {
    if check.findings.is_empty() {
        return Ok(());
    }
    check.unloaded = unloaded(check, evidence, options)?;
    let trial = trial(evidence, options);
    let mut done = Vec::new();
    let mut rest: std::collections::VecDeque<Finding> = std::mem::take(&mut check.findings).into();
    while let Some(mut finding) = rest.pop_front() {
        let places: Places = evidence.covered(&finding).into_iter().collect();
        let explained = explain(&trial, &finding, &places, options.listed);
        if let Ok(Some((edit, explanation))) = &explained {
            finding.cause = explanation.cause.clone();
            finding.rejected = explanation.rejected.clone();
            if let (Some(edit), Some(cause)) = (edit, finding.cause.as_mut()) {
                join(
                    &trial,
                    edit,
                    cause,
                    &mut finding.layers,
                    &mut finding.steps,
                    &mut finding.taps,
                    &mut rest,
                )?;
            }
        }
        explained?;
        done.push(finding);
    }
    check.findings = done;
    Ok(())
}

/// Where edits are tried.
pub(crate) fn trial<'a>(evidence: &'a Evidence<'a>, options: Options) -> Trial<'a> {
    let model = evidence.model;
    let weights = Weights::held(&model.checkpoint, &evidence.arithmetic, &model.program, options.memory);
    Trial { evidence, weights, lanes: options.lanes, largest: LARGEST }
}

/// Takes in the later findings that the same edit explains.
fn join(
    trial: &Trial,
    edit: &Edit,
    cause: &mut Cause,
    layers: &mut Vec<usize>,
    steps: &mut Vec<usize>,
    taps: &mut Vec<String>,
    rest: &mut std::collections::VecDeque<Finding>,
) -> Result<(), Error> {
    let mut kept = std::collections::VecDeque::new();
    while let Some(other) = rest.pop_front() {
        let places: Places = trial.evidence.covered(&other).into_iter().collect();
        let residual = trial.residual(edit, &places, INSIDE)?;
        if residual > INSIDE {
            kept.push_back(other);
            continue;
        }
        cause.residual = cause.residual.max(residual);
        layers.extend(&other.layers);
        steps.extend(&other.steps);
        taps.extend(other.taps);
    }
    for numbers in [layers, steps] {
        numbers.sort_unstable();
        numbers.dedup();
    }
    *rest = kept;
    Ok(())
}

/// What was found out about one finding.
struct Explanation {
    cause: Option<Cause>,
    rejected: Vec<Rejected>,
}

/// A proposal and how it fared.
struct Tried {
    /// Place of its hypothesis in the list.
    order: usize,
    edit: Edit,
    residual: f64,
}

impl Tried {
    fn id(&self) -> &'static str {
        HYPOTHESES[self.order].id
    }

    fn listed(&self) -> Rejected {
        Rejected { id: self.id().into(), detail: self.edit.detail.clone(), residual: self.residual }
    }
}

/// Tries every hypothesis at the finding's first place, then those that hold there at all others.
fn explain(
    trial: &Trial,
    finding: &Finding,
    places: &Places,
    listed: usize,
) -> Result<Option<(Option<Edit>, Explanation)>, Error> {
    let first = places
        .iter()
        .copied()
        .find(|&(op, step)| step == finding.step && trial.evidence.model.program.ops[op].tap == finding.tap);
    let Some((op, step)) = first else { return Ok(None) };
    let Some((scene, own)) = Scene::new(trial, finding, op, step)? else { return Ok(None) };
    let here = Places::from([(op, step)]);
    let screen = Screen::new(trial, &scene, own)?;
    let unedited = screen.unedited;
    let proposals = |(order, hypothesis): (usize, &Hypothesis)| {
        (hypothesis.propose)(&scene).into_iter().map(move |edit| (order, edit))
    };
    let proposed: Vec<(usize, Edit)> = HYPOTHESES.par_iter().enumerate().flat_map_iter(proposals).collect();
    let mut estimates = Vec::with_capacity(proposed.len());
    for some in proposed.chunks(screen.together()) {
        let some = some.par_iter().map(|(_, edit)| screen.estimate(edit));
        estimates.extend(some.collect::<Result<Vec<_>, Error>>()?);
    }
    let mut tried = Vec::new();
    for ((order, edit), estimate) in proposed.into_iter().zip(estimates) {
        let residual = match estimate {
            Some(estimate) => estimate,
            None => trial.residual(&edit, &here, f64::INFINITY)?,
        };
        // What changes nothing here is no hypothesis here.
        if (residual - unedited).abs() > SAME * unedited {
            tried.push(Tried { order, edit, residual });
        }
    }
    let (inside, mut outside): (Vec<Tried>, Vec<Tried>) =
        tried.into_iter().partition(|t| t.residual <= INSIDE);
    let mut holding = Vec::new();
    for mut t in inside {
        t.residual = t.residual.max(trial.residual(&t.edit, places, INSIDE)?);
        if t.residual <= INSIDE { holding.push(t) } else { outside.push(t) }
    }
    holding.sort_by_key(|t| (t.edit.parameters, t.order));
    let limit = MARGIN * holding.first().map_or(0.0, |t| t.residual.max(ROUNDING));
    // What comes near at the first place may be far off at another one.
    for t in outside.iter_mut().filter(|t| t.residual < limit && t.residual < RIVAL * unedited) {
        t.residual = t.residual.max(trial.residual(&t.edit, places, limit)?);
    }
    let mut best: BTreeMap<&str, Rejected> = BTreeMap::new();
    for t in &outside {
        let known = best.get(t.id()).is_some_and(|r| r.residual <= t.residual);
        if !known && holding.iter().all(|h| h.id() != t.id()) {
            best.insert(t.id(), t.listed());
        }
    }
    let mut rejected: Vec<Rejected> = best.into_values().collect();
    rejected.sort_by(|a, b| a.residual.total_cmp(&b.residual));
    // What leaves as much as the model itself explains nothing, and is no rival.
    let rival = |r: &&Rejected| r.residual < RIVAL * unedited;
    let next = rejected.iter().find(rival).map_or(f64::INFINITY, |r| r.residual);
    rejected.truncate(listed);
    let mut holding = holding.into_iter();
    let Some(named) = holding.next() else {
        return Ok(Some((None, Explanation { cause: None, rejected })));
    };
    let mut equal: Vec<Tried> = Vec::new();
    for t in holding {
        if t.id() != named.id() && equal.iter().all(|e| e.id() != t.id()) {
            equal.push(t);
        }
    }
    let left = named.residual.max(ROUNDING);
    if next < MARGIN * left || unedited < LEAST * left {
        rejected.insert(0, named.listed());
        rejected.truncate(listed);
        return Ok(Some((None, Explanation { cause: None, rejected })));
    }
    let separate = match equal.first() {
        Some(other) => separate(trial, &named.edit, &other.edit, &here)?,
        None => None,
    };
    let cause = Cause {
        id: named.id().into(),
        detail: named.edit.detail.clone(),
        residual: named.residual,
        equal: equal.iter().map(Tried::listed).collect(),
        separate,
        element: element(trial, &scene, &named.edit)?,
    };
    Ok(Some((Some(named.edit), Explanation { cause: Some(cause), rejected })))
}

/// The first operation on the way that is not recorded and that two edits predict differently.
fn separate(trial: &Trial, a: &Edit, b: &Edit, places: &Places) -> Result<Option<String>, Error> {
    use firstdiff_reference::Recorded as _;
    let (Some(a), Some(b)) = (trial.predict(a, places, true)?, trial.predict(b, places, true)?) else {
        return Ok(None);
    };
    for x in &a {
        let Some(y) = b.iter().find(|y| (y.op, y.step) == (x.op, x.step)) else { continue };
        if trial.evidence.has(x.op, x.step) || x.exact.len() != y.exact.len() {
            continue;
        }
        let pairs = || x.exact.data().iter().zip(y.exact.data());
        let difference: f64 = pairs().map(|(x, y)| (x - y) * (x - y)).sum();
        let size: f64 = pairs().map(|(x, y)| x * x + y * y).sum();
        // Far beyond what any format that engines store makes of it.
        if difference > 1e-4 * size {
            return Ok(Some(trial.evidence.model.program.ops[x.op].tap.clone()));
        }
    }
    Ok(None)
}

/// The element whose error is largest, and what the hypothesis says of it.
fn element(trial: &Trial, scene: &Scene, edit: &Edit) -> Result<Option<Element>, Error> {
    let places = Places::from([(scene.op, scene.step)]);
    let (Some(exact), Some(predicted)) = (scene.exact(scene.op), trial.predict(edit, &places, false)?) else {
        return Ok(None);
    };
    let Some(predicted) = predicted.into_iter().next() else { return Ok(None) };
    let shape = scene.engine.shape();
    if exact.shape() != shape || predicted.exact.shape() != shape {
        return Ok(None);
    }
    let error = |i: &usize| (scene.engine.data()[*i] - exact.data()[*i]).abs();
    let finite = |i: &usize| error(i).is_finite();
    let worst = (0..scene.engine.len()).filter(finite).max_by(|a, b| error(a).total_cmp(&error(b)));
    // Where all that is wrong is not finite, no number shows it.
    let worst = worst.filter(|&i| predicted.exact.data()[i] != exact.data()[i]);
    Ok(worst.map(|i| {
        let (mut rest, mut index) = (i, vec![0; shape.len()]);
        for (axis, &extent) in shape.iter().enumerate().rev() {
            index[axis] = rest % extent;
            rest /= extent;
        }
        Element {
            tap: scene.program().ops[scene.op].tap.clone(),
            step: scene.step,
            index,
            engine: scene.engine.data()[i],
            exact: exact.data()[i],
            hypothesis: predicted.exact.data()[i],
        }
    }))
}
