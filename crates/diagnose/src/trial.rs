//! Executing an edit and holding what it predicts against what the engine has.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use firstdiff_compare::{Evidence, MAX_RATIO, Measured, THRESHOLDS};
use firstdiff_model::{Counts, Program};
use firstdiff_reference::{
    Arithmetic, Budget, Executor, MatmulInputs, Predicted, Recorded as _, Site, Weights, Work,
};
use firstdiff_tensor::{Float, Tensor};

use crate::Error;
use crate::edit::{Applied, Edit, Known, Weight};
use crate::rank::FAR;
use crate::scene::Scene;

/// Places: an operation and a step each.
pub(crate) type Places = BTreeSet<(usize, usize)>;

/// Where edits are tried, and the work that may still be done.
pub(crate) struct Trial<'a> {
    pub evidence: &'a Evidence<'a>,
    pub weights: Weights<'a>,
    pub lanes: usize,
    /// Elements of the largest weight that edits may replace.
    pub largest: usize,
    /// Rows and keys of each step.
    pub counts: Arc<Vec<Counts>>,
    pub budget: Budget,
}

/// An edit placed: its program, and the operations to execute, each in a step.
pub(crate) struct Plan {
    edited: Option<Program>,
    pub needed: Places,
}

/// Work for each element of a weight that an edit may replace: reading it, changing it, rounding it.
const REPLACED: Work = 30;

impl<'a> Trial<'a> {
    /// The same with a budget of its own.
    pub fn with(&self, budget: Budget) -> Trial<'a> {
        let weights = self.weights.edited(HashMap::new());
        let (evidence, counts) = (self.evidence, self.counts.clone());
        Trial { evidence, weights, counts, budget, ..*self }
    }

    /// Places an edit; `None` where it does not fit this model.
    pub fn plan(&self, edit: &Edit, places: &Places) -> Option<Plan> {
        let original = &self.evidence.model.program;
        let edited = edit.program.as_ref().map(|change| {
            let mut program: Program = original.clone();
            change(&mut program);
            program
        });
        let program = edited.as_ref().unwrap_or(original);
        let needed = self.executor(program, None).needed(places, self.evidence);
        // An edited program may read what comes later: only where that is recorded.
        let there = |&(op, step): &(usize, usize)| {
            program.ops[op].inputs.iter().all(|input| input.0 < op || self.evidence.has(input.0, step))
        };
        if edited.is_some() && !needed.iter().all(there) {
            return None;
        }
        Some(Plan { edited, needed })
    }

    /// The work of executing a plan: exactly, from what is known of the model as it is, or with what rounding does
    /// to it as well.
    pub fn cost(&self, edit: &Edit, plan: &Plan, measured: bool) -> Work {
        let original = &self.evidence.model.program;
        let program = plan.edited.as_ref().unwrap_or(original);
        let executor = self.executor(program, measured.then_some(&self.evidence.arithmetic));
        let has = |op: usize, step: usize| self.evidence.has(op, step);
        // Before the first operation that an edit of the program alone changes, everything is known.
        let changed = |op: &usize| program.ops[*op] != original.ops[*op];
        let first = match edit.changes_only_program() && !measured {
            true => plan.needed.iter().map(|p| p.0).find(changed).unwrap_or(usize::MAX),
            false => 0,
        };
        let executed: Places = plan.needed.range((first, 0)..).copied().collect();
        let mut work = executor.work(&self.counts, &executed, &has);
        if edit.replaces_weights() {
            let ops: BTreeSet<usize> = plan.needed.iter().map(|p| p.0).collect();
            let shapes = ops.iter().flat_map(|&op| program.ops[op].kind.weights());
            let elements = shapes.map(|(_, shape)| shape.iter().product::<usize>());
            let replaced: usize = elements.filter(|&n| n <= self.largest).fold(0, usize::saturating_add);
            work = work.saturating_add(REPLACED.saturating_mul(replaced as Work));
        }
        work
    }

    /// The work of measuring what an edit leaves at `places`; none where it does not fit.
    pub fn cost_of_measuring(&self, edit: &Edit, places: &Places) -> Work {
        self.plan(edit, places).map_or(0, |plan| self.cost(edit, &plan, true))
    }

    fn executor<'e>(&'e self, program: &'e Program, arithmetic: Option<&'e Arithmetic>) -> Executor<'e> {
        let lanes = if arithmetic.is_some() { self.lanes } else { 0 };
        Executor { program, weights: &self.weights, arithmetic, lanes, progress: None }
    }

    /// What `edit` predicts at `places`, and with `inner` on the way there; `None` where it does not fit
    /// this model, or where the budget does not have the work.
    pub fn predict(
        &self,
        edit: &Edit,
        places: &Places,
        inner: bool,
    ) -> Result<Option<Vec<Predicted<f64>>>, Error> {
        let Some(plan) = self.plan(edit, places) else { return Ok(None) };
        if !self.budget.spend(self.cost(edit, &plan, true)) {
            return Ok(None);
        }
        self.execute(edit, plan, places, inner, Some(&self.evidence.arithmetic), &Known::new())
    }

    /// The exact value that `edit` predicts at one place: a fraction of the work of predicting what rounding
    /// does to it as well. What is known of the model as it is, is not executed again. The work is not taken from the
    /// budget: who screens many side by side has asked for it.
    pub fn exact(
        &self,
        edit: &Edit,
        place: (usize, usize),
        known: &Known,
    ) -> Result<Option<Tensor<f64>>, Error> {
        let places = Places::from([place]);
        let Some(plan) = self.plan(edit, &places) else { return Ok(None) };
        let predicted = self.execute(edit, plan, &places, false, None, known)?;
        Ok(predicted.and_then(|p| p.into_iter().next()).map(|p| p.exact))
    }

    /// The exact values that an edit predicts at the scene's place and on the way there; `None` where it does not fit
    /// or where the budget does not have the work.
    pub fn exact_values(&self, edit: &Edit, scene: &Scene) -> Result<Option<Vec<Predicted<f64>>>, Error> {
        let places = Places::from([(scene.op, scene.step)]);
        let Some(plan) = self.plan(edit, &places) else { return Ok(None) };
        if !self.budget.spend(self.cost(edit, &plan, false)) {
            return Ok(None);
        }
        self.execute(edit, plan, &places, true, None, &scene.known)
    }

    fn execute(
        &self,
        edit: &Edit,
        plan: Plan,
        places: &Places,
        inner: bool,
        arithmetic: Option<&Arithmetic>,
        known: &Known,
    ) -> Result<Option<Vec<Predicted<f64>>>, Error> {
        let rough = arithmetic.filter(|_| edit.rough).map(rough);
        let arithmetic = rough.as_ref().or(arithmetic);
        let program = plan.edited.as_ref().unwrap_or(&self.evidence.model.program);
        let ops: BTreeSet<usize> = plan.needed.iter().map(|p| p.0).collect();
        let (mut replaced, mut reweighted) = (HashMap::new(), BTreeSet::new());
        for &op in &ops {
            for (name, shape) in program.ops[op].kind.weights() {
                if self.weights.shape(name) != Some(shape.as_slice()) {
                    return Ok(None);
                }
                // A copy of a huge matrix, for which no edit is made that others do not stand for.
                if shape.iter().product::<usize>() > self.largest {
                    continue;
                }
                let weight = Weight { name, shape: &shape, weights: &self.weights };
                if let Some(values) = edit.replaced(&weight) {
                    reweighted.insert(op);
                    replaced.insert(name.to_string(), Arc::new(values));
                }
            }
        }
        let weights = self.weights.edited(replaced);
        let executor = Executor { weights: &weights, ..self.executor(program, arithmetic) };
        let applied = Applied { edit, weights: &self.weights, evidence: self.evidence, known, reweighted };
        let steps = &self.evidence.steps;
        let mut predicted = executor.segment(steps, places, self.evidence, &applied, inner)?;
        for p in predicted.iter_mut().filter(|p| places.contains(&(p.op, p.step))) {
            let site = Site { index: p.op, op: &program.ops[p.op], step: p.step, steps, kept: 0 };
            applied.lose(&site, &mut p.exact);
        }
        Ok(Some(predicted))
    }

    /// The error that `edit` leaves at the worst of `places`, in noise floors; the largest there is where
    /// it does not fit. Stops at the first place beyond `enough`. `None` where the budget does not have the work.
    pub fn residual(&self, edit: &Edit, places: &Places, enough: f64) -> Result<Option<f64>, Error> {
        let mut worst: f64 = 0.0;
        // One layer at a time: that bounds what is held in memory, and most edits fail early.
        let layer = |op: usize| firstdiff_trace::tap::split(&self.evidence.model.program.ops[op].tap).0;
        let mut rest: Vec<(usize, usize)> = places.iter().copied().collect();
        while let Some(&(first, _)) = rest.first() {
            let (now, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(|p| layer(p.0) == layer(first));
            rest = later;
            let now: Places = now.into_iter().collect();
            let Some(plan) = self.plan(edit, &now) else { return Ok(Some(MAX_RATIO)) };
            if !self.budget.spend(self.cost(edit, &plan, true)) {
                return Ok(None);
            }
            let arithmetic = Some(&self.evidence.arithmetic);
            let Some(predicted) = self.execute(edit, plan, &now, false, arithmetic, &Known::new())? else {
                return Ok(Some(MAX_RATIO));
            };
            for value in predicted {
                worst = worst.max(self.left(value)?);
            }
            if worst > enough {
                break;
            }
        }
        Ok(Some(worst))
    }

    /// The error that a prediction leaves, in noise floors.
    pub fn left(&self, predicted: Predicted<f64>) -> Result<f64, Error> {
        let measured = self.evidence.measure(predicted)?;
        Ok(measured.as_ref().map_or(MAX_RATIO, residual))
    }
}

/// An arithmetic in which matrices have the rounding errors of stored values.
fn rough(arithmetic: &Arithmetic) -> Arithmetic {
    match arithmetic.store {
        store @ (Float::BF16 | Float::F16) => {
            Arithmetic { matmul_inputs: MatmulInputs::Short(store), ..arithmetic.clone() }
        }
        // Fits in f64 are as good as sums of f32.
        _ => arithmetic.clone(),
    }
}

/// The error, relative to the value, beyond which a prediction is none.
const HALF: f64 = 0.5;

/// Where healthy ends, in the unit of [`residual`].
pub(crate) const INSIDE: f64 = THRESHOLDS.whole;

/// The error of the worst part, in noise floors of a whole value: parts, factors and offsets count by
/// how near they are to being wrong.
pub(crate) fn residual(measured: &Measured) -> f64 {
    // Weights of absurd sizes have noise in which everything drowns: what leaves half of the value is no
    // explanation, whatever its noise.
    let least = if measured.rel_l2 <= HALF { 0.0 } else { FAR };
    if measured.non_finite > 0 { MAX_RATIO } else { (measured.severity() * INSIDE).clamp(least, MAX_RATIO) }
}
