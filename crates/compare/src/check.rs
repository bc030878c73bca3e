//! The verdict on a trace.

use std::collections::BTreeSet;
use std::ops::Range;

use firstdiff_model::Model;
use firstdiff_reference::{Arithmetic, StepInput};
use firstdiff_tensor::{DType, Float};
use firstdiff_trace::{Trace, tap};
use serde::Serialize;

use crate::Error;
use crate::align::Alignment;
use crate::arithmetic::{self, ArithmeticUse, Setting, Settled};
use crate::evidence::Evidence;
use crate::finding::{Finding, findings};
use crate::inspection::{inspect, inspect_some};
use crate::parts::{self, Chosen, LayersChecked};
use crate::reach::NotCompared;
use crate::replay::{Ambiguous, Judged};
use crate::shared::{Shared, shared};
use crate::side_by_side::{Replayed, replay};
use crate::tokens::{self, Tokens, late};

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything compared is what rounding explains.
    Agrees,
    /// Something is not.
    Diverges,
    /// Too little was recorded to say.
    Unmeasured,
}

/// What was compared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    /// Forward calls.
    pub steps: usize,
    /// Recorded values compared.
    pub taps: usize,
    /// Their elements.
    pub elements: usize,
    /// Operations of which nothing was recorded.
    pub missing: Vec<String>,
    /// Recorded names that the model does not have.
    pub unknown: Vec<String>,
    /// Where a slice of the model was checked: which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayersChecked>,
}

/// Candidates for causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Candidates {
    /// Those that were tried.
    pub tried: usize,
    /// All of them.
    pub of: usize,
}

/// The result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the check came to its end; `false` where it was interrupted.
    pub complete: bool,
    /// Whether every candidate for a cause was tried, as far as there is something to explain.
    pub causes_complete: bool,
    /// How many were; none where causes were not looked for.
    pub candidates: Option<Candidates>,
    /// What it rests on.
    pub coverage: Coverage,
    /// The arithmetic it rests on.
    pub arithmetic: ArithmeticUse,
    /// What is wrong, in order of execution.
    pub findings: Vec<Finding>,
    /// What all that is wrong has in common, and nothing that is right.
    pub shared: Vec<Shared>,
    /// Parameters that the engine did not load, as its values show; known once causes were looked for.
    pub unloaded: Vec<Unloaded>,
    /// The tokens chosen.
    pub tokens: Option<Tokens>,
    /// The tap nearest to being wrong, and how near: 1 is the threshold.
    pub closest: Option<(String, f64)>,
    /// Where rounding decides a choice (which expert): the engine's was followed, or both were.
    pub ambiguous: Vec<Ambiguous>,
    /// What was recorded and not compared, and why.
    pub not_compared: Vec<NotCompared>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// Parameters that hold one number in what the engine used, and do not in the file.
#[derive(Clone, Debug, Serialize)]
pub struct Unloaded {
    /// Their names without layers: `k_proj.bias`.
    pub parameters: Vec<String>,
    /// The layers; empty for one outside them.
    pub layers: Vec<usize>,
    /// How many of the kind the model has.
    pub of: usize,
    /// The number: `zero` or `one`.
    pub holds: &'static str,
}

/// How to check.
#[derive(Clone)]
pub struct CheckOptions<'a> {
    /// The arithmetic, instead of the declared or inferred one.
    pub arithmetic: Option<Arithmetic>,
    /// Bytes of dequantised weights to keep.
    pub memory: usize,
    /// Random executions for the noise of inner values.
    pub lanes: usize,
    /// Called with operations done and to do.
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
    /// Parts of the replay that run side by side; results do not depend on it.
    pub jobs: usize,
    /// Layers to check; `None`: the whole model.
    pub layers: Option<Vec<Range<usize>>>,
}

impl Default for CheckOptions<'_> {
    /// The whole model, one operation after another, nine executions for the noise of inner values.
    fn default() -> Self {
        CheckOptions { arithmetic: None, memory: 0, lanes: 9, progress: None, jobs: 1, layers: None }
    }
}

/// Checks `trace` against `model`.
///
/// # Errors
/// When the trace is of another model or cannot be read.
pub fn check(trace: &Trace, model: &Model, options: &CheckOptions) -> Result<Check, Error> {
    Ok(check_judged(trace, model, options)?.0)
}

/// Checks, and keeps what the verdict rests on.
///
/// # Errors
/// When the trace is of another model or cannot be read.
pub fn check_with_evidence<'a>(
    trace: &'a Trace,
    model: &'a Model,
    options: &CheckOptions,
) -> Result<(Check, Evidence<'a>), Error> {
    let Whole { check, replayed, alignment, steps, arithmetic } = check_whole(trace, model, options)?;
    Ok((check, Evidence::new(trace, model, alignment, steps, arithmetic, &replayed)))
}

/// Also gives what was measured, value by value.
pub(crate) fn check_judged(
    trace: &Trace,
    model: &Model,
    options: &CheckOptions,
) -> Result<(Check, Vec<Judged>), Error> {
    let whole = check_whole(trace, model, options)?;
    Ok((whole.check, whole.replayed.judged))
}

/// A check and everything it rests on.
struct Whole {
    check: Check,
    replayed: Replayed,
    alignment: Alignment,
    steps: Vec<StepInput>,
    arithmetic: Arithmetic,
}

fn check_whole(trace: &Trace, model: &Model, options: &CheckOptions) -> Result<Whole, Error> {
    same_model(trace, model)?;
    let alignment = Alignment::new(trace, &model.program)?;
    let chosen = parts::choose(model, &alignment, options.layers.as_deref())?;
    let steps = alignment.steps.clone();
    let possible = match &options.arithmetic {
        Some(given) => {
            let why = "given on the command line".to_string();
            let profile = given.name.clone();
            vec![(given.clone(), ArithmeticUse { profile, declared: true, why, taken: vec![] })]
        }
        None => arithmetic::possible(trace)?,
    };
    let suspicions = suspicions(model, &chosen)?;
    let setting = Setting { trace, model, alignment: &alignment, chosen: &chosen, steps: &steps, options };
    let Settled { arithmetic, used, mut replayed, doubt } =
        arithmetic::settle(setting, possible, options.arithmetic.is_some())?;

    let late = late::find(trace, model, &mut replayed.judged, |op, undo| {
        let alignment = Alignment { late: Some((op, undo)), ..alignment.clone() };
        let chosen = parts::only(&model.program, &alignment, op);
        let options = &CheckOptions { progress: None, ..options.clone() };
        Ok(replay(trace, model, &alignment, &chosen, &steps, &arithmetic, options)?.judged)
    })?;
    let findings = findings(&replayed.judged, &model.program, &alignment);
    let coverage = coverage(trace, model, &alignment, &chosen, &replayed.judged);
    let mut tokens = if coverage.taps == 0 || coverage.layers.is_some() {
        None
    } else {
        // The second half: the tokens are of the whole model, whatever was replayed.
        let (replayed, all) = (chosen.ops.len(), model.program.ops.len());
        let report =
            options.progress.map(|p| move |done: usize| p(replayed + done * replayed / all, 2 * replayed));
        let report = report.as_ref().map(|r| r as &(dyn Fn(usize) + Sync));
        tokens::compare(trace, model, &alignment, &arithmetic, options.lanes, late.as_ref(), report)?
    };
    let diverged = tokens.as_ref().is_some_and(Tokens::diverge);
    let verdict = if coverage.taps == 0 {
        Verdict::Unmeasured
    } else if findings.is_empty() && !diverged {
        Verdict::Agrees
    } else {
        Verdict::Diverges
    };
    let mut not_compared = alignment.reach.not_compared();
    not_compared.extend(tokens.as_mut().map(|t| std::mem::take(&mut t.not_compared)).unwrap_or_default());
    let closest = replayed
        .judged
        .iter()
        .map(|j| (model.program.ops[j.op].tap.clone(), j.measured.severity()))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let mut notes = notes(trace, &alignment, &coverage, &findings, diverged, suspicions);
    notes.extend(late.map(|late| late.note()));
    notes.extend(doubt);
    notes.extend(alignment.notes.iter().cloned());
    notes.extend(unrecorded_layers(&chosen, &coverage));
    let notes = notes.into_iter().chain(shortened(trace, &findings, &arithmetic)).collect();
    let check = Check {
        verdict,
        complete: true,
        causes_complete: findings.is_empty(),
        candidates: None,
        coverage,
        arithmetic: used,
        shared: shared(&replayed.judged, model),
        findings,
        unloaded: vec![],
        tokens,
        closest,
        ambiguous: replayed.ambiguous.clone(),
        not_compared,
        notes,
    };
    Ok(Whole { check, replayed, alignment, steps, arithmetic })
}

/// What is suspicious about the weights that are used.
fn suspicions(model: &Model, chosen: &Chosen) -> Result<Vec<String>, Error> {
    if chosen.layers.is_none() {
        return Ok(inspect(model, None)?.suspicions());
    }
    let weights = |&op: &usize| model.program.ops[op].kind.weights().into_iter().map(|(name, _)| name);
    let used: BTreeSet<&str> = chosen.ops.iter().flat_map(weights).collect();
    Ok(inspect_some(model, |name| used.contains(name), None)?.suspicions())
}

/// Refuses a trace that names another model, or has tokens this one does not.
fn same_model(trace: &Trace, model: &Model) -> Result<(), Error> {
    let vocab = model.program.vocab;
    for step in &trace.steps {
        let outside = |t: i64| usize::try_from(t).map_or(true, |t| t >= vocab);
        if let Some(row) = step.token_ids.iter().position(|&t| outside(t)) {
            return Err(Error::Vocabulary {
                file: step.path().into(),
                row,
                token: step.token_ids[row],
                vocab,
            });
        }
    }
    declared_model(trace, model)
}

/// Refuses a trace that names another model.
pub(crate) fn declared_model(trace: &Trace, model: &Model) -> Result<(), Error> {
    let Some(spec) = &trace.manifest.model else { return Ok(()) };
    let differ = |key, trace_says: &str, model_is: String| Error::OtherModel {
        file: trace.path().join("trace.json"),
        key,
        trace: trace_says.to_string(),
        model: model_is,
    };
    if let Some(family) = &spec.family
        && family != model.family.name
    {
        return Err(differ("family", family, model.family.name.to_string()));
    }
    // The fingerprint is one of all tensors.
    if let Some(fingerprint) = &spec.fingerprint
        && model.checkpoint.count_absent() == 0
    {
        let ours = model.checkpoint.fingerprint();
        if *fingerprint != ours {
            let (file, trace) = (trace.path().join("trace.json"), fingerprint.clone());
            return Err(Error::OtherWeights { file, trace, model: ours });
        }
    }
    Ok(())
}

fn coverage(
    trace: &Trace,
    model: &Model,
    alignment: &Alignment,
    chosen: &Chosen,
    judged: &[Judged],
) -> Coverage {
    let recorded: BTreeSet<String> =
        judged.iter().map(|j| tap::pattern(&model.program.ops[j.op].tap)).collect();
    // Nothing can be said of a layer of which nothing was recorded.
    let judged_layers: BTreeSet<usize> =
        judged.iter().filter_map(|j| tap::split(&model.program.ops[j.op].tap).0).collect();
    let left: BTreeSet<String> = alignment.reach.not_compared().into_iter().flat_map(|n| n.taps).collect();
    let mut missing = Vec::new();
    let asked = |tap: &str| match &chosen.layers {
        None => true,
        Some(layers) => tap::split(tap).0.is_some_and(|layer| layers.checked.contains(&layer)),
    };
    for op in model.program.ops.iter().filter(|op| asked(&op.tap)) {
        let pattern = tap::pattern(&op.tap);
        if !recorded.contains(&pattern) && !left.contains(&pattern) && !missing.contains(&pattern) {
            missing.push(pattern);
        }
    }
    Coverage {
        steps: trace.steps.len(),
        taps: judged.len(),
        elements: judged.iter().map(|j| j.measured.elements).sum(),
        missing,
        unknown: alignment.unknown.clone(),
        layers: chosen.layers.as_ref().map(|asked| LayersChecked {
            checked: asked.checked.iter().copied().filter(|layer| judged_layers.contains(layer)).collect(),
            of: asked.of,
        }),
    }
}

/// Said where nothing of a layer that was asked for was recorded.
fn unrecorded_layers(chosen: &Chosen, coverage: &Coverage) -> Option<String> {
    let (asked, found) = (chosen.layers.as_ref()?, coverage.layers.as_ref()?);
    let without: Vec<usize> =
        asked.checked.iter().copied().filter(|layer| !found.checked.contains(layer)).collect();
    (!without.is_empty())
        .then(|| format!("nothing was recorded of layers {without:?}: they were not checked"))
}

/// Said where a value that is wrong was stored in a shorter format than the engine is said to hold: the
/// recording rounded it.
fn shortened(trace: &Trace, findings: &[Finding], arithmetic: &Arithmetic) -> Option<String> {
    let first = findings.first()?;
    if first.choices.is_some() {
        return None;
    }
    let stored = match trace.steps.get(first.step)?.taps().get(&first.tap)?.dtype {
        DType::F16 => Float::F16,
        DType::BF16 => Float::BF16,
        DType::F32 => Float::F32,
        _ => return None,
    };
    let held = match first.tap.ends_with("_cache") {
        true => arithmetic.k_cache.float()?,
        false => arithmetic.store,
    };
    (stored.unit_roundoff() > held.unit_roundoff()).then(|| {
        format!(
            "{} was recorded in {}, which is shorter than the {} of the arithmetic: what the recording rounded \
             counts as an error. Record values as the engine holds them, or correct the arithmetic",
            first.tap,
            stored.name(),
            held.name()
        )
    })
}

fn notes(
    trace: &Trace,
    alignment: &Alignment,
    coverage: &Coverage,
    findings: &[Finding],
    diverged: bool,
    suspicions: Vec<String>,
) -> Vec<String> {
    let mut notes: Vec<String> =
        suspicions.into_iter().map(|s| format!("the model file is suspicious: {s}")).collect();
    if trace.manifest.complete == Some(false) {
        notes.push(
            "the recording was not closed: the engine stopped, or still runs; whole steps only are judged"
                .into(),
        );
    }
    for tap in &alignment.permuted {
        notes.push(format!(
            "{tap} was recorded with its axes in another order; compared in docs/TRACE.md's order"
        ));
    }
    if let Some(first) = findings.first()
        && first.tap == "embed"
        && first.structure.is_empty()
        && first.place.contains("all tokens")
    {
        notes.push(
            "the engine's embeddings are not this file's, in no simple way: it may hold other weights, such as \
             another revision. Then nothing here is a bug of the engine until both use the same file"
                .into(),
        );
    }
    if let Some(LayersChecked { checked, of }) = &coverage.layers {
        notes.push(format!(
            "{} of {of} layers were checked, and nothing else: not the other layers, the embedding, the output matrix or \
             the tokens chosen",
            checked.len()
        ));
    }
    if trace.steps.is_empty() {
        notes.push(
            "the trace has no steps: the engine stopped before its first one, or nothing was recorded".into(),
        );
    } else if coverage.taps == 0 && alignment.reach.not_compared().is_empty() {
        notes.push("no recorded value could be compared; record `logits` next, then `layers.*.out`".into());
    }
    if diverged && findings.is_empty() {
        notes.push(
            "every recorded value follows from the ones before it, yet a token is another one: look at sampling, at \
             what goes in next, or at operations that were not recorded"
                .into(),
        );
    }
    notes
}
