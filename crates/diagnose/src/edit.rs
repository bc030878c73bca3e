//! A change to an execution: what the engine may have computed instead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use firstdiff_compare::Evidence;
use firstdiff_model::{Op, Program};
use firstdiff_reference::{
    Edits, KeyLabel, Misreading, Recorded as _, Site, StepInput, Weights, stored_keys,
};
use firstdiff_tensor::Tensor;

/// Where an edit is asked what it does, and what it may look up there.
pub struct At<'a> {
    /// The operation and the step.
    pub site: &'a Site<'a>,
    pub(crate) weights: &'a Weights<'a>,
    pub(crate) evidence: &'a Evidence<'a>,
}

impl At<'_> {
    /// The operation.
    pub fn op(&self) -> &Op {
        self.site.op
    }

    /// The last part of the operation's tap: `q_rope` of `layers.3.q_rope`.
    pub fn tap(&self) -> &str {
        firstdiff_trace::tap::split(&self.site.op.tap).1
    }

    /// The layer, where the operation has one.
    pub fn layer(&self) -> Option<usize> {
        firstdiff_trace::tap::split(&self.site.op.tap).0
    }

    /// A weight, whole; `None` where the model lacks it.
    pub fn weight(&self, name: &str) -> Option<Arc<Vec<f32>>> {
        self.weights.whole(name).ok()
    }

    /// The step's input rows.
    pub fn rows(&self) -> &StepInput {
        &self.site.steps[self.site.step]
    }

    /// Whom the keys belong to that the layer reads in this step.
    pub fn keys(&self) -> Vec<KeyLabel> {
        stored_keys(&self.site.steps[..=self.site.step], self.layer())
    }

    /// A number as the engine stores results of operations.
    pub fn stored(&self, x: f64) -> f64 {
        self.evidence.arithmetic.store.round(x)
    }

    /// The model's program.
    pub fn program(&self) -> &Program {
        &self.evidence.model.program
    }

    /// What the engine recorded of another operation or step.
    pub fn recorded(&self, op: usize, step: usize) -> Option<Tensor<f64>> {
        if step >= self.site.steps.len() {
            return None;
        }
        self.evidence.read(op, step).ok().flatten()
    }
}

/// A weight that an edit may replace.
pub struct Weight<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    pub(crate) weights: &'a Weights<'a>,
}

impl Weight<'_> {
    /// Its values.
    pub fn values(&self) -> Option<Arc<Vec<f32>>> {
        self.weights.whole(self.name).ok()
    }

    /// Those of any weight, with its shape.
    pub fn any(&self, name: &str) -> Option<(&[usize], Arc<Vec<f32>>)> {
        Some((self.weights.shape(name)?, self.weights.whole(name).ok()?))
    }

    /// Its values, had the file other bytes for it: `edit` changes a copy of the stored blocks. Not rounded.
    pub fn decoded(&self, edit: impl FnOnce(&mut [u8])) -> Option<Vec<f32>> {
        self.weights.decoded(self.name, edit).ok()
    }

    /// What they become when the weight's parts are read wrongly; `None` where they cannot be.
    pub fn misread(&self, how: Misreading) -> Option<Vec<f32>> {
        self.weights.misread(self.name, how).ok().flatten()
    }

    /// The name of the format in which the file stores it.
    pub fn format(&self) -> Option<&'static str> {
        self.weights.format(self.name)
    }

    /// Values rounded to the format that the engine holds weights in.
    pub fn loaded(&self, values: Vec<f32>) -> Vec<f32> {
        self.weights.loaded(self.name, values)
    }

    /// Those of another weight of the same shape.
    pub fn other(&self, name: &str) -> Option<Arc<Vec<f32>>> {
        (self.weights.shape(name)? == self.shape).then(|| self.weights.whole(name).ok()).flatten()
    }
}

type LostEdit = Box<dyn Fn(&At, &Tensor<f64>) -> Option<Vec<bool>> + Send + Sync>;
type ProgramEdit = Box<dyn Fn(&mut Program) + Send + Sync>;
type WeightEdit = Box<dyn Fn(&Weight) -> Option<Vec<f32>> + Send + Sync>;
type PositionEdit = Box<dyn Fn(&At, &mut Vec<u32>) + Send + Sync>;
type KeyEdit = Box<dyn Fn(&At, &mut Vec<KeyLabel>) + Send + Sync>;
type InputEdit = Box<dyn Fn(&At, usize, &Tensor<f64>) -> Option<Tensor<f64>> + Send + Sync>;
type OutputEdit = Box<dyn Fn(&At, &[&Tensor<f64>], &Tensor<f64>) -> Option<Tensor<f64>> + Send + Sync>;

/// What the engine may have computed instead. Built up with the methods below; a later call of one
/// method replaces an earlier one.
#[derive(Default)]
pub struct Edit {
    /// What it says, with its parameters: `theta 10000 where the model has 1000000`.
    pub detail: String,
    pub(crate) parameters: usize,
    pub(crate) program: Option<ProgramEdit>,
    weight: Option<WeightEdit>,
    positions: Option<PositionEdit>,
    keys: Option<KeyEdit>,
    input: Option<InputEdit>,
    output: Option<OutputEdit>,
    terms: usize,
    pub(crate) rough: bool,
    lost: Option<LostEdit>,
}

impl Edit {
    /// No change yet.
    pub fn new(detail: impl Into<String>) -> Edit {
        Edit { detail: detail.into(), ..Edit::default() }
    }

    /// Says how many numbers were fitted to the engine's value: of equal explanations, the one with the
    /// fewest is named.
    #[must_use]
    pub fn fitted(mut self, parameters: usize) -> Edit {
        self.parameters = parameters;
        self
    }

    /// Changes the program. Operations keep their places: other kinds and inputs, none added.
    #[must_use]
    pub fn program(mut self, f: impl Fn(&mut Program) + Send + Sync + 'static) -> Edit {
        self.program = Some(Box::new(f));
        self
    }

    /// Changes every operation of the program that `f` cares for.
    #[must_use]
    pub fn ops(self, f: impl Fn(&mut Op) + Send + Sync + 'static) -> Edit {
        self.program(move |p| p.ops.iter_mut().for_each(&f))
    }

    /// Other values for weights; `None` leaves one as it is.
    #[must_use]
    pub fn weight(mut self, f: impl Fn(&Weight) -> Option<Vec<f32>> + Send + Sync + 'static) -> Edit {
        self.weight = Some(Box::new(f));
        self
    }

    /// Other positions, for rotations (which turn by them) or for masks (which see up to them).
    #[must_use]
    pub fn positions(mut self, f: impl Fn(&At, &mut Vec<u32>) + Send + Sync + 'static) -> Edit {
        self.positions = Some(Box::new(f));
        self
    }

    /// Other labels of the stored keys, for masks.
    #[must_use]
    pub fn keys(mut self, f: impl Fn(&At, &mut Vec<KeyLabel>) + Send + Sync + 'static) -> Edit {
        self.keys = Some(Box::new(f));
        self
    }

    /// Another value for an operation's input, by its number.
    #[must_use]
    pub fn input(
        mut self,
        f: impl Fn(&At, usize, &Tensor<f64>) -> Option<Tensor<f64>> + Send + Sync + 'static,
    ) -> Edit {
        self.input = Some(Box::new(f));
        self
    }

    /// Another value for an operation's output, from its inputs and from what it should be. Also right for
    /// replacing a computation altogether.
    #[must_use]
    pub fn output(
        mut self,
        f: impl Fn(&At, &[&Tensor<f64>], &Tensor<f64>) -> Option<Tensor<f64>> + Send + Sync + 'static,
    ) -> Edit {
        self.output = Some(Box::new(f));
        self
    }

    /// Says that matrices were fitted to values as the engine stored them: they are known no better than to
    /// that format.
    #[must_use]
    pub fn rough(mut self) -> Edit {
        self.rough = true;
        self
    }

    /// Says of how many numbers, side by side in a row, each element of the edited output is the sum: adding them
    /// up rounds.
    #[must_use]
    pub fn sums(mut self, terms: usize) -> Edit {
        self.terms = terms;
        self
    }

    /// Which elements of a value are not finite in the engine, as it should then be.
    #[must_use]
    pub fn lost(
        mut self,
        f: impl Fn(&At, &Tensor<f64>) -> Option<Vec<bool>> + Send + Sync + 'static,
    ) -> Edit {
        self.lost = Some(Box::new(f));
        self
    }

    /// Whether all that it changes stands in the program.
    pub(crate) fn changes_only_program(&self) -> bool {
        self.program.is_some()
            && self.weight.is_none()
            && self.positions.is_none()
            && self.keys.is_none()
            && self.input.is_none()
            && self.output.is_none()
    }

    /// Whether it may replace weights.
    pub(crate) fn replaces_weights(&self) -> bool {
        self.weight.is_some()
    }

    /// The replacement of one weight, where there is one.
    pub(crate) fn replaced(&self, weight: &Weight) -> Option<Vec<f32>> {
        let values = self.weight.as_ref()?(weight)?;
        (values.len() == weight.shape.iter().product::<usize>()).then_some(values)
    }
}

/// Values of operations in steps, of the model as it is.
pub(crate) type Known = BTreeMap<(usize, usize), Tensor<f64>>;

/// An edit with what its closures may look up.
pub(crate) struct Applied<'a> {
    pub edit: &'a Edit,
    pub weights: &'a Weights<'a>,
    pub evidence: &'a Evidence<'a>,
    /// Values that need no execution where the edit changes nothing before them.
    pub known: &'a Known,
    /// Operations of other weights than the model's.
    pub reweighted: BTreeSet<usize>,
}

impl Applied<'_> {
    /// Takes from a predicted value what the edit says is not finite. Its noise is of what there would be:
    /// nothing can be computed with the rest.
    pub fn lose(&self, site: &Site, value: &mut Tensor<f64>) {
        let lost = self.edit.lost.as_ref().and_then(|f| f(&self.at(site), value));
        if let Some(lost) = lost.filter(|lost| lost.len() == value.len()) {
            value.data_mut().iter_mut().zip(lost).filter(|(_, lost)| *lost).for_each(|(x, _)| *x = f64::NAN);
        }
    }

    fn at<'s>(&'s self, site: &'s Site<'s>) -> At<'s> {
        At { site, weights: self.weights, evidence: self.evidence }
    }
}

impl Edits<f64> for Applied<'_> {
    fn positions(&self, site: &Site, positions: &mut Vec<u32>) {
        if let Some(f) = &self.edit.positions {
            f(&self.at(site), positions);
        }
    }

    fn keys(&self, site: &Site, keys: &mut Vec<KeyLabel>) {
        if let Some(f) = &self.edit.keys {
            f(&self.at(site), keys);
        }
    }

    fn input(&self, site: &Site, number: usize, value: &Tensor<f64>) -> Option<Tensor<f64>> {
        self.edit.input.as_ref()?(&self.at(site), number, value)
    }

    fn output(&self, site: &Site, inputs: &[&Tensor<f64>], value: &Tensor<f64>) -> Option<Tensor<f64>> {
        let edited = self.edit.output.as_ref()?(&self.at(site), inputs, value)?;
        // Another shape would not fit what reads it.
        (edited.shape() == value.shape()).then_some(edited)
    }

    fn terms(&self) -> usize {
        self.edit.terms
    }

    fn known(&self, site: &Site) -> Option<&Tensor<f64>> {
        let own = &self.evidence.model.program.ops[site.index];
        let same = !self.reweighted.contains(&site.index) && (self.edit.program.is_none() || own == site.op);
        self.known.get(&(site.index, site.step)).filter(|_| same)
    }
}
