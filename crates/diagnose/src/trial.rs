//! Executing an edit and holding what it predicts against what the engine has.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use firstdiff_compare::{Evidence, MAX_RATIO, Measured, THRESHOLDS};
use firstdiff_model::Program;
use firstdiff_reference::{Arithmetic, Executor, MatmulInputs, Predicted, Recorded as _, Site, Weights};
use firstdiff_tensor::{Float, Tensor};

use crate::Error;
use crate::edit::{Applied, Edit, Known, Weight};
use crate::rank::FAR;

/// Places: an operation and a step each.
pub(crate) type Places = BTreeSet<(usize, usize)>;

/// Where edits are tried.
pub(crate) struct Trial<'a> {
    pub evidence: &'a Evidence<'a>,
    pub weights: Weights<'a>,
    pub lanes: usize,
    /// Elements of the largest weight that edits may replace.
    pub largest: usize,
}

impl<'a> Trial<'a> {
    /// What `edit` predicts at `places`, and with `inner` on the way there; `None` where it does not fit
    /// this model.
    pub fn predict(
        &self,
        edit: &Edit,
        places: &Places,
        inner: bool,
    ) -> Result<Option<Vec<Predicted<f64>>>, Error> {
        self.execute(edit, places, inner, Some(&self.evidence.arithmetic), &Known::new())
    }

    /// The exact value that `edit` predicts at one place: a fraction of the work of predicting what rounding
    /// does to it as well. What is known of the model as it is, is not executed again.
    pub fn exact(
        &self,
        edit: &Edit,
        place: (usize, usize),
        known: &Known,
    ) -> Result<Option<Tensor<f64>>, Error> {
        let predicted = self.execute(edit, &Places::from([place]), false, None, known)?;
        Ok(predicted.and_then(|p| p.into_iter().next()).map(|p| p.exact))
    }

    fn execute(
        &self,
        edit: &Edit,
        places: &Places,
        inner: bool,
        arithmetic: Option<&Arithmetic>,
        known: &Known,
    ) -> Result<Option<Vec<Predicted<f64>>>, Error> {
        let rough = arithmetic.filter(|_| edit.rough).map(rough);
        let arithmetic = rough.as_ref().or(arithmetic);
        let original = &self.evidence.model.program;
        let edited = edit.program.as_ref().map(|change| {
            let mut program: Program = original.clone();
            change(&mut program);
            program
        });
        let program = edited.as_ref().unwrap_or(original);
        let executor = Executor {
            program,
            weights: &self.weights,
            arithmetic,
            lanes: if arithmetic.is_some() { self.lanes } else { 0 },
            progress: None,
        };
        let needed = executor.needed(places, self.evidence);
        // An edited program may read what comes later: only where that is recorded.
        let there = |&(op, step): &(usize, usize)| {
            program.ops[op].inputs.iter().all(|input| input.0 < op || self.evidence.has(input.0, step))
        };
        if edited.is_some() && !needed.iter().all(there) {
            return Ok(None);
        }
        let ops: BTreeSet<usize> = needed.iter().map(|p| p.0).collect();
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
        let executor = Executor { weights: &weights, ..executor };
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
    /// it does not fit. Stops at the first place beyond `enough`.
    pub fn residual(&self, edit: &Edit, places: &Places, enough: f64) -> Result<f64, Error> {
        let mut worst: f64 = 0.0;
        // One layer at a time: that bounds what is held in memory, and most edits fail early.
        let layer = |op: usize| firstdiff_trace::tap::split(&self.evidence.model.program.ops[op].tap).0;
        let mut rest: Vec<(usize, usize)> = places.iter().copied().collect();
        while let Some(&(first, _)) = rest.first() {
            let (now, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(|p| layer(p.0) == layer(first));
            rest = later;
            let Some(predicted) = self.predict(edit, &now.into_iter().collect(), false)? else {
                return Ok(MAX_RATIO);
            };
            for value in predicted {
                worst = worst.max(self.left(value)?);
            }
            if worst > enough {
                break;
            }
        }
        Ok(worst)
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
