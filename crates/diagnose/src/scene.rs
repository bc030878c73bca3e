//! One wrong value, and everything around it that a hypothesis may look at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use firstdiff_compare::{Evidence, Finding};
use firstdiff_model::{Counts, Model, Op, OpKind, Program};
use firstdiff_reference::{
    Budget, Executor, Predicted, Recorded as _, Site, StepInput, Unedited, Weights, Work, counts,
};
use firstdiff_tensor::Tensor;

use crate::Error;
use crate::edit::{Applied, At, Edit, Known};
use crate::trial::Trial;

/// One wrong value: an operation in a step, with the operations between it and the recorded values that
/// it follows from.
#[derive(Clone)]
pub struct Scene<'a> {
    /// The model.
    pub model: &'a Model,
    /// The wrong operation, by its place in the program.
    pub op: usize,
    /// The step.
    pub step: usize,
    /// The operations executed in this step, in order; the wrong one is among them.
    pub ops: Vec<usize>,
    /// The wrong taps of the finding, without their layers: `q_proj`, `k_proj`.
    pub taps: Vec<String>,
    /// The layers in which they are wrong; empty for taps outside layers.
    pub layers: Vec<usize>,
    /// The steps in which they are wrong.
    pub wrong_steps: Vec<usize>,
    /// Every place that the finding covers, as operation and step.
    pub wrong: Vec<(usize, usize)>,
    /// The engine's value.
    pub engine: Arc<Tensor<f64>>,
    evidence: &'a Evidence<'a>,
    weights: &'a Weights<'a>,
    /// Values of the segment as the model has them, in the steps that matter here.
    pub(crate) known: Arc<Known>,
    counts: Arc<Vec<Counts>>,
    meter: Arc<Meter>,
}

/// The work that one hypothesis may do to propose edits, and whether it asked for more.
struct Meter {
    budget: Budget,
    refused: AtomicBool,
}

/// Work for each element of a weight that a hypothesis looks at whole: reading and dequantising it.
const READ: Work = 10;

impl<'a> Scene<'a> {
    /// With the value as the model has it; `None` where it is not recorded, or where the budget does not have the
    /// work of executing the segment.
    pub(crate) fn new(
        trial: &'a Trial<'a>,
        finding: &Finding,
        op: usize,
        step: usize,
    ) -> Result<Option<(Scene<'a>, Predicted<f64>)>, Error> {
        let evidence = trial.evidence;
        let Some(engine) = evidence.value(op, step)? else { return Ok(None) };
        let places = BTreeSet::from([(op, step)]);
        let Some(mut predicted) = trial.predict(&Edit::new(""), &places, true)? else { return Ok(None) };
        let Some(own) = predicted.iter().position(|p| (p.op, p.step) == (op, step)) else { return Ok(None) };
        let own = predicted.swap_remove(own);
        let mut known: Known = predicted.into_iter().map(|p| ((p.op, p.step), p.exact)).collect();
        known.insert((op, step), own.exact.clone());
        let scene = Scene {
            model: evidence.model,
            op,
            step,
            ops: known.keys().filter(|place| place.1 == step).map(|place| place.0).collect(),
            taps: finding.taps.iter().map(|t| firstdiff_trace::tap::split(t).1.to_string()).collect(),
            layers: finding.layers.clone(),
            wrong_steps: finding.steps.clone(),
            wrong: evidence.covered(finding),
            engine: Arc::new(engine),
            evidence,
            weights: &trial.weights,
            known: Arc::new(known),
            counts: trial.counts.clone(),
            meter: Arc::new(Meter { budget: Budget::new(0), refused: AtomicBool::new(false) }),
        };
        Ok(Some((scene, own)))
    }

    /// The same scene for one hypothesis, which may do as much work as `budget` has.
    pub(crate) fn metered(&self, budget: Budget) -> Scene<'a> {
        Scene { meter: Arc::new(Meter { budget, refused: AtomicBool::new(false) }), ..self.clone() }
    }

    /// What the hypothesis has spent, and whether it asked for more than it may.
    pub(crate) fn spent(&self) -> (&Budget, bool) {
        (&self.meter.budget, self.meter.refused.load(Ordering::Relaxed))
    }

    /// Asks for work to be done, in multiply-adds of a fast matrix product: a step of a plain loop is worth ten of them,
    /// a cosine or a power two hundred. What costs much asks before it begins. Where that is refused, the hypothesis does
    /// without, and is asked again once everything cheaper was tried.
    pub fn may(&self, work: Work) -> bool {
        let may = self.meter.budget.spend(work);
        if !may {
            self.meter.refused.store(true, Ordering::Relaxed);
        }
        may
    }

    /// Whether so many executions of [`Scene::under`] may be done. They are counted as they are done; this asks before
    /// the first.
    pub fn may_execute(&self, times: usize, edit: &Edit) -> bool {
        let work = self.work_under(edit, self.op, self.step).saturating_mul(times as Work);
        let may = work <= self.meter.budget.left();
        if !may {
            self.meter.refused.store(true, Ordering::Relaxed);
        }
        may
    }

    /// The work of [`Scene::under_at`].
    fn work_under(&self, edit: &Edit, op: usize, step: usize) -> Work {
        let original = self.program();
        let edited = edit.program.as_ref().map(|change| {
            let mut program = original.clone();
            change(&mut program);
            program
        });
        let program = edited.as_ref().unwrap_or(original);
        let executor =
            Executor { program, weights: self.weights, arithmetic: None, lanes: 0, progress: None };
        let mut needed = executor.needed(&BTreeSet::from([(op, step)]), self.evidence);
        if edit.changes_only_program() {
            // Everything before the first operation that is changed is known.
            let changed = needed.iter().map(|p| p.0).find(|&op| program.ops[op] != original.ops[op]);
            needed = needed.split_off(&(changed.unwrap_or(usize::MAX), 0));
        }
        executor.work(&self.counts, &needed, &|op, step| self.evidence.has(op, step))
    }

    /// The program.
    pub fn program(&self) -> &'a Program {
        &self.model.program
    }

    /// The step's input rows.
    pub fn input(&self) -> &StepInput {
        &self.evidence.steps[self.step]
    }

    /// All steps' input rows.
    pub fn steps(&self) -> &[StepInput] {
        &self.evidence.steps
    }

    /// The first operation of the segment that `pick` takes.
    pub fn find(&self, pick: impl Fn(&OpKind) -> bool) -> Option<(usize, &'a Op)> {
        self.ops.iter().map(|&i| (i, &self.program().ops[i])).find(|(_, op)| pick(&op.kind))
    }

    /// The operation of the segment whose tap, without its layer, has this name.
    pub fn find_tap(&self, name: &str) -> Option<(usize, &'a Op)> {
        self.ops.iter().map(|&i| (i, &self.program().ops[i])).find(|(_, op)| short(op) == name)
    }

    /// The wrong operation, where its own inputs are recorded, so that its computation can be fitted.
    pub fn alone(&self) -> Option<&'a Op> {
        let op = &self.program().ops[self.op];
        (self.ops.len() == 1).then_some(op)
    }

    /// The value that operations read: the engine's where recorded, else the exact one of the segment.
    pub fn value(&self, op: usize) -> Option<Tensor<f64>> {
        self.recorded(op, self.step).or_else(|| self.exact(op).cloned())
    }

    /// The exact value of an operation of the segment.
    pub fn exact(&self, op: usize) -> Option<&Tensor<f64>> {
        self.known.get(&(op, self.step))
    }

    /// What the engine recorded, in any step.
    pub fn recorded(&self, op: usize, step: usize) -> Option<Tensor<f64>> {
        self.evidence.read(op, step).ok().flatten()
    }

    /// The bit patterns, as stored, of what is not finite in the engine's value.
    pub fn not_finite(&self) -> Option<BTreeSet<Vec<u8>>> {
        let step = &self.evidence.trace.steps[self.step];
        let tap = &self.program().ops[self.op].tap;
        let (values, bytes) = (step.read::<f64>(tap).ok().flatten()?, step.raw(tap)?);
        let size = (bytes.len() / values.len().max(1)).max(1);
        let lost = values.data().iter().zip(bytes.chunks(size)).filter(|(x, _)| !x.is_finite());
        Some(lost.map(|(_, bytes)| bytes.to_vec()).collect())
    }

    /// A weight, whole; `None` where the model lacks it, or where reading it is more work than may be done.
    pub fn weight(&self, name: &str) -> Option<Arc<Vec<f32>>> {
        let elements = self.weights.shape(name)?.iter().product::<usize>();
        self.may(READ.saturating_mul(elements as Work)).then(|| self.weights.whole(name).ok())?
    }

    /// Chosen rows of a weight, one after another.
    pub fn weight_rows(&self, name: &str, rows: impl Iterator<Item = usize>) -> Option<Vec<f32>> {
        let rows: Vec<usize> = rows.collect();
        let width = self.weights.shape(name)?.iter().skip(1).product::<usize>();
        let work = READ.saturating_mul((rows.len() * width) as Work);
        self.may(work).then(|| self.weights.rows(name, rows.into_iter()).ok())?
    }

    /// The format in which the file stores a weight, by name.
    pub fn format(&self, name: &str) -> Option<&'static str> {
        self.weights.format(name)
    }

    /// Names of the weights of all operations that are called like operation `op`, in every layer.
    pub fn weights_like(&self, op: usize) -> Vec<String> {
        let tap = short(&self.program().ops[op]);
        let same = self.program().ops.iter().filter(|o| short(o) == tap);
        same.filter_map(|o| o.kind.weights().first().map(|(name, _)| name.to_string())).collect()
    }

    /// A number of the model's configuration, as the file spells it.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.model.checkpoint.config().get(key).and_then(|v| v.as_f64())
    }

    /// The exact value of the wrong operation under an edit (of anything but weights): for fits that need
    /// what lies between the parameter and the recorded value. `None` too where that is more work than may be done.
    pub fn under(&self, edit: &Edit) -> Option<Tensor<f64>> {
        self.under_at(edit, self.op, self.step)
    }

    /// The same of another operation, in any step.
    pub fn under_at(&self, edit: &Edit, op: usize, step: usize) -> Option<Tensor<f64>> {
        self.may(self.work_under(edit, op, step)).then_some(())?;
        let original = self.program();
        let edited = edit.program.as_ref().map(|change| {
            let mut program = original.clone();
            change(&mut program);
            program
        });
        let program = edited.as_ref().unwrap_or(original);
        let executor =
            Executor { program, weights: self.weights, arithmetic: None, lanes: 0, progress: None };
        let known: &Known = &self.known;
        let applied = Applied {
            edit,
            weights: self.weights,
            evidence: self.evidence,
            known,
            reweighted: BTreeSet::new(),
        };
        let places = BTreeSet::from([(op, step)]);
        let predicted =
            executor.segment(&self.evidence.steps, &places, self.evidence, &applied, false).ok()?;
        predicted.into_iter().next().map(|p| p.exact)
    }

    /// The values of the picked operations when the model is given these tokens from position `first` on, and
    /// nothing before them, rounded as the engine most likely does: what another request left in a cache. `None`
    /// where that is more work than may be done.
    pub fn forward(
        &self,
        tokens: &[i64],
        first: u32,
        pick: impl Fn(&Op) -> bool,
    ) -> Option<BTreeMap<usize, Tensor<f64>>> {
        let executor = Executor {
            program: self.program(),
            weights: self.weights,
            arithmetic: Some(&self.evidence.arithmetic),
            lanes: 1,
            progress: None,
        };
        let ops = self.program().ops.iter().enumerate().filter(|(_, op)| pick(op));
        let places: BTreeSet<(usize, usize)> = ops.map(|(i, _)| (i, 0)).collect();
        let steps = [StepInput::new(tokens, first)];
        let needed = executor.needed::<f64>(&places, &Nowhere);
        let counts = counts(&steps, &self.program().ratios());
        self.may(executor.work(&counts, &needed, &|_, _| false)).then_some(())?;
        let predicted = executor.segment(&steps, &places, &Nowhere, &Unedited, false).ok()?;
        let rounded = |p: Predicted<f64>| match p.noise.and_then(|n| n.lanes.into_iter().next()) {
            Some(value) => (p.op, value),
            None => (p.op, p.exact),
        };
        Some(predicted.into_iter().map(rounded).collect())
    }

    /// Hands `f` the same view of an operation that an edit's closures get.
    pub fn at<R>(&self, index: usize, f: impl FnOnce(&At) -> R) -> R {
        let op = &self.program().ops[index];
        let site = Site { index, op, step: self.step, steps: &self.evidence.steps, kept: 0 };
        f(&At { site: &site, weights: self.weights, evidence: self.evidence })
    }
}

/// Nothing recorded.
struct Nowhere;

impl firstdiff_reference::Recorded<f64> for Nowhere {
    fn has(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn read(&self, _op: usize, _step: usize) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        Ok(None)
    }
}

/// The last part of an operation's tap.
pub(crate) fn short(op: &Op) -> &str {
    firstdiff_trace::tap::split(&op.tap).1
}
