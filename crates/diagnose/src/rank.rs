//! Which hypothesis is named: the one that explains everything the finding covers, if nothing else comes near.

use std::collections::BTreeMap;
use std::sync::Arc;

use firstdiff_compare::{Because, Candidates, Cause, Check, Element, Evidence, Finding, Rejected, Unnamed};
use firstdiff_reference::{Budget, Weights, Work, counts};

use crate::Error;
use crate::edit::Edit;
use crate::hypotheses::HYPOTHESES;
use crate::loading::within;
use crate::scene::Scene;
use crate::screen::Screen;
use crate::search::{Tried, search};
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
    /// Work that may be done.
    pub budget: Work,
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
pub(crate) const SAME: f64 = 1e-3;
/// Elements of the largest weight that edits may replace: a copy of it takes four times as many bytes.
pub(crate) const LARGEST: usize = 1 << 26;
/// Beyond so many floors an edit is not measured exactly: ten times the margin.
pub(crate) const FAR: f64 = 10.0 * MARGIN * INSIDE;

/// Who looks on while causes are looked for.
pub trait Watch {
    /// So much of so much work is done, about.
    fn progress(&self, _done: Work, _total: Work) {}

    /// What is known by now; causes are not complete.
    fn known(&self, _check: &Check) {}
}

impl Watch for () {}

/// Looks for the cause of every finding of `check`, in order of execution. A cause that also explains later
/// findings takes them in. Stops when the budget is spent: [`Check::causes_complete`] says so.
///
/// # Errors
/// When a recorded value or a weight cannot be read. What was found until then stays in `check`.
pub fn diagnose(check: &mut Check, evidence: &Evidence, options: Options) -> Result<(), Error> {
    diagnose_watched(check, evidence, options, &())
}

/// The same, with someone looking on.
///
/// # Errors
/// As [`diagnose`].
pub fn diagnose_watched(
    check: &mut Check,
    evidence: &Evidence,
    options: Options,
    watch: &dyn Watch,
) -> Result<(), Error> {
    check.causes_complete = false;
    if check.findings.is_empty() {
        check.causes_complete = true;
        return Ok(());
    }
    let trial = trial(evidence, options);
    let part = trial.with(trial.budget.part(trial.budget.left() / 4));
    let (unloaded, mut complete) = within(&part, check)?;
    trial.budget.settle(&part.budget);
    check.unloaded = unloaded;
    check.candidates = Some(Candidates::default());
    let mut at = 0;
    while at < check.findings.len() {
        watch.known(check);
        let finding = &check.findings[at];
        let places: Places = evidence.covered(finding).into_iter().collect();
        // Half of what is left, where more findings follow.
        let following = at + 1 < check.findings.len();
        let part = trial.with(trial.budget.part(trial.budget.left() / if following { 2 } else { 1 }));
        let explained = explain(&part, finding, &places, options.listed, watch)?;
        trial.budget.settle(&part.budget);
        complete &= explained.candidates.tried == explained.candidates.of;
        let counted = check.candidates.get_or_insert_default();
        counted.tried += explained.candidates.tried;
        counted.of += explained.candidates.of;
        let finding = &mut check.findings[at];
        finding.rejected = explained.rejected;
        finding.unnamed = explained.unnamed;
        finding.cause = explained.cause;
        if let Some(edit) = &explained.edit {
            complete &= join(&trial, edit, &mut check.findings, at)?;
        }
        at += 1;
    }
    check.causes_complete = complete;
    Ok(())
}

/// Where edits are tried.
pub(crate) fn trial<'a>(evidence: &'a Evidence<'a>, options: Options) -> Trial<'a> {
    let model = evidence.model;
    let weights = Weights::held(&model.checkpoint, &evidence.arithmetic, &model.program, options.memory);
    let counts = Arc::new(counts(&evidence.steps, &model.program.ratios()));
    let budget = Budget::new(options.budget);
    Trial { evidence, weights, lanes: options.lanes, largest: LARGEST, counts, budget }
}

/// Takes in the findings after `at` that the same edit explains. Whether the budget was enough to try all.
fn join(trial: &Trial, edit: &Edit, findings: &mut Vec<Finding>, at: usize) -> Result<bool, Error> {
    let (mut complete, mut next) = (true, at + 1);
    while next < findings.len() {
        let places: Places = trial.evidence.covered(&findings[next]).into_iter().collect();
        let residual = trial.residual(edit, &places, INSIDE)?;
        complete &= residual.is_some();
        let Some(residual) = residual.filter(|&residual| residual <= INSIDE) else {
            next += 1;
            continue;
        };
        let other = findings.remove(next);
        let finding = &mut findings[at];
        if let Some(cause) = &mut finding.cause {
            cause.residual = cause.residual.max(residual);
        }
        finding.layers.extend(&other.layers);
        finding.steps.extend(&other.steps);
        finding.taps.extend(other.taps);
        for numbers in [&mut finding.layers, &mut finding.steps] {
            numbers.sort_unstable();
            numbers.dedup();
        }
    }
    Ok(complete)
}

/// What was found out about one finding.
#[derive(Default)]
struct Explanation {
    edit: Option<Edit>,
    cause: Option<Cause>,
    unnamed: Option<Unnamed>,
    rejected: Vec<Rejected>,
    candidates: Candidates,
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
    watch: &dyn Watch,
) -> Result<Explanation, Error> {
    let first = places
        .iter()
        .copied()
        .find(|&(op, step)| step == finding.step && trial.evidence.model.program.ops[op].tap == finding.tap);
    let Some((op, step)) = first else { return Ok(Explanation::default()) };
    let here = Places::from([(op, step)]);
    if trial.cost_of_measuring(&Edit::new(""), &here) > trial.budget.left() {
        // Not even the model itself can be executed here: each hypothesis is a candidate that was not tried.
        let candidates = Candidates { tried: 0, of: HYPOTHESES.len() };
        return Ok(Explanation { candidates, ..Explanation::default() });
    }
    let Some((scene, own)) = Scene::new(trial, finding, op, step)? else { return Ok(Explanation::default()) };
    let screen = Screen::new(trial, &scene, own)?;
    let unedited = screen.unedited;
    let search = search(trial, &scene, &screen, places, watch)?;
    let mut candidates = Candidates { tried: search.looked_at, of: search.looked_at + search.missed };
    let (mut inside, mut outside): (Vec<Tried>, Vec<Tried>) =
        search.tried.into_iter().partition(|t| t.residual <= INSIDE);
    inside.sort_by_key(|t| (t.edit.parameters, t.order, t.number));
    let (mut holding, mut unverified) = (Vec::new(), Vec::new());
    for mut t in inside {
        match trial.residual(&t.edit, places, INSIDE)? {
            Some(residual) => {
                t.residual = t.residual.max(residual);
                if t.residual <= INSIDE { holding.push(t) } else { outside.push(t) }
            }
            None => unverified.push(t),
        }
    }
    candidates.tried -= unverified.len();
    let limit = MARGIN * holding.first().map_or(0.0, |t: &Tried| t.residual.max(ROUNDING));
    // What comes near at the first place may be far off at another one.
    for t in outside.iter_mut().filter(|t| t.residual < limit && t.residual < RIVAL * unedited) {
        if let Some(residual) = trial.residual(&t.edit, places, limit)? {
            t.residual = t.residual.max(residual);
        }
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
    let rival = rejected.iter().find(|r| r.residual < RIVAL * unedited).cloned();
    rejected.truncate(listed);
    let mut holding = holding.into_iter();
    let Some(named) = holding.next() else {
        let unnamed = unverified.first().map(|t| Unnamed {
            explains: t.listed(),
            because: Because::Unverified,
            equal: vec![],
            rival: None,
            separate: None,
        });
        return Ok(Explanation { unnamed, rejected, candidates, ..Explanation::default() });
    };
    let mut equal: Vec<Tried> = Vec::new();
    for t in holding {
        if t.id() != named.id() && equal.iter().all(|e| e.id() != t.id()) {
            equal.push(t);
        }
    }
    let left = named.residual.max(ROUNDING);
    let near = rival.filter(|rival| rival.residual < MARGIN * left);
    if near.is_some() || unedited < LEAST * left {
        let other = near.as_ref().and_then(|near| {
            outside.iter().find(|t| t.id() == near.id && t.edit.detail == near.detail).map(|t| &t.edit)
        });
        let unnamed = Unnamed {
            explains: named.listed(),
            because: if near.is_some() { Because::Rival } else { Because::Small },
            equal: equal.iter().map(Tried::listed).collect(),
            separate: match other.or(equal.first().map(|t| &t.edit)) {
                Some(other) => separate(trial, &scene, &named.edit, other)?,
                None => None,
            },
            rival: near,
        };
        rejected.insert(0, named.listed());
        rejected.truncate(listed);
        return Ok(Explanation { unnamed: Some(unnamed), rejected, candidates, ..Explanation::default() });
    }
    let separate = match equal.first() {
        Some(other) => separate(trial, &scene, &named.edit, &other.edit)?,
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
    let (edit, cause) = (Some(named.edit), Some(cause));
    Ok(Explanation { edit, cause, unnamed: None, rejected, candidates })
}

/// The first operation on the way that is not recorded and that two edits predict differently.
fn separate(trial: &Trial, scene: &Scene, a: &Edit, b: &Edit) -> Result<Option<String>, Error> {
    use firstdiff_reference::Recorded as _;
    let (Some(a), Some(b)) = (trial.exact_values(a, scene)?, trial.exact_values(b, scene)?) else {
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
    let (Some(exact), Some(predicted)) = (scene.exact(scene.op), trial.exact_values(edit, scene)?) else {
        return Ok(None);
    };
    let here = |p: &firstdiff_reference::Predicted<f64>| (p.op, p.step) == (scene.op, scene.step);
    let Some(predicted) = predicted.into_iter().find(here) else { return Ok(None) };
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
