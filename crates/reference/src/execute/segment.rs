//! Some operations of a program, executed from recorded values: what a segment would have given,
//! had the engine computed something else in it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use firstdiff_model::Op;
use firstdiff_model::ops::State;
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::tap;

use super::{Choice, Executor, Flight, Inputs, Noise, StepInput, noise};
use crate::error::Error;
use crate::keys::{KeyLabel, KeyValues, StepKeys, step_keys};

/// What a cache holds in each step, and what rounding may do to it.
type Rows<T> = Vec<(Tensor<T>, noise::Spread<T>)>;

/// Where an edit is asked what it does.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The operation, by its place in the program.
    pub index: usize,
    /// The operation.
    pub op: &'a Op,
    /// The step.
    pub step: usize,
    /// All steps.
    pub steps: &'a [StepInput],
    /// How many keys were stored before this step.
    pub kept: usize,
}

/// What an execution does that the program does not say.
pub trait Edits<T>: Sync {
    /// Changes the positions that the operation sees: those it rotates by, or those of the rows that it
    /// masks for.
    fn positions(&self, _site: &Site, _positions: &mut Vec<u32>) {}

    /// Changes whom the stored keys belong to, as the operation sees it.
    fn keys(&self, _site: &Site, _keys: &mut Vec<KeyLabel>) {}

    /// Another value in place of the operation's input `number`.
    fn input(&self, _site: &Site, _number: usize, _value: &Tensor<T>) -> Option<Tensor<T>> {
        None
    }

    /// Another value in place of the operation's output.
    fn output(&self, _site: &Site, _inputs: &[&Tensor<T>], _value: &Tensor<T>) -> Option<Tensor<T>> {
        None
    }

    /// Of how many numbers, side by side in a row, each element of such an output is the sum; 1 where none are
    /// added up.
    fn terms(&self) -> usize {
        1
    }

    /// The output before any edit of it, where that is known: asked only where the inputs, positions and
    /// keys are those of the program as it is.
    fn known(&self, _site: &Site) -> Option<&Tensor<T>> {
        None
    }
}

/// The program as it is.
#[derive(Debug)]
pub struct Unedited;

impl<T> Edits<T> for Unedited {}

/// Values that a segment may start from.
pub trait Recorded<T> {
    /// Whether there is one.
    fn has(&self, op: usize, step: usize) -> bool;

    /// The value.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, op: usize, step: usize) -> Result<Option<Tensor<T>>, Error>;
}

/// What a segment gives.
#[derive(Debug)]
pub struct Predicted<T> {
    /// The operation.
    pub op: usize,
    /// The step.
    pub step: usize,
    /// Its exact value.
    pub exact: Tensor<T>,
    /// What rounding may do to it; only for targets, where the executor has an arithmetic.
    pub noise: Option<Noise<T>>,
    /// What a choice was made from, where scores decide it.
    pub choice: Option<Choice>,
}

/// Operations and steps.
type Places = BTreeSet<(usize, usize)>;

impl Executor<'_> {
    /// Predicts the value of each target (an operation and a step), from recorded values and through as
    /// few operations as possible. With `inner`, values of the operations on the way are given too.
    ///
    /// # Errors
    /// When a value or a weight cannot be read.
    pub fn segment<T: Real>(
        &self,
        steps: &[StepInput],
        targets: &Places,
        recorded: &dyn Recorded<T>,
        edits: &dyn Edits<T>,
        inner: bool,
    ) -> Result<Vec<Predicted<T>>, Error> {
        let needed = self.needed(targets, recorded);
        let keys = step_keys(&[], steps);
        let mut state = KeyValues::new(self.program.ops.len());
        let mut flights: BTreeMap<(usize, usize), Flight<T>> = BTreeMap::new();
        let mut predicted = Vec::new();
        // Values that may not be those of the program as it is.
        let mut changed = Places::new();
        for (index, op) in self.program.ops.iter().enumerate() {
            let at: Vec<usize> = needed.range((index, 0)..=(index, usize::MAX)).map(|p| p.1).collect();
            if at.is_empty() {
                continue;
            }
            let mut inputs = Vec::with_capacity(at.len());
            let mut known = Vec::with_capacity(at.len());
            for &step in &at {
                let site = Site { index, op, step, steps, kept: keys[step].kept };
                let (input, edited) = self.edited_inputs(site, &keys[step], recorded, &mut flights, edits)?;
                let same = !edited && op.inputs.iter().all(|input| !changed.contains(&(input.0, step)));
                known.extend(edits.known(&site).filter(|_| same && self.arithmetic.is_none()));
                inputs.push(input);
            }
            let wanted: Vec<bool> = at.iter().map(|&step| targets.contains(&(index, step))).collect();
            let reused = known.len() == at.len();
            let outputs: Rows<T> = match op.kind.state() {
                _ if reused => {
                    let parts = inputs.iter().zip(known).zip(&at);
                    let output = |((input, plain), &step): ((&Inputs<T>, &Tensor<T>), &usize)| {
                        let edited = input.edited(None, plain);
                        if edited.is_some() {
                            changed.insert((index, step));
                        }
                        (edited.unwrap_or_else(|| plain.clone()), noise::Spread::default())
                    };
                    parts.map(output).collect()
                }
                Some(cache) => {
                    self.cache_rows(index, cache, &at, &inputs, recorded, edits, &mut state, &wanted)?
                }
                None => {
                    let (exact, spreads) = self.values(index, op, &inputs, &wanted)?;
                    exact.into_iter().zip(spreads).collect()
                }
            };
            if !reused {
                changed.extend(at.iter().map(|&step| (index, step)));
            }
            for ((&step, (exact, spread)), wanted) in at.iter().zip(outputs).zip(wanted) {
                let noise::Spread { noise, lanes, choice } = spread;
                if wanted || inner {
                    predicted.push(Predicted { op: index, step, exact: exact.clone(), noise, choice });
                }
                if !recorded.has(index, step) {
                    flights.insert((index, step), Flight { exact: Arc::new(exact), lanes });
                }
            }
        }
        Ok(predicted)
    }

    /// The operations to execute, and in which steps.
    pub fn needed<T: Real>(&self, targets: &Places, recorded: &dyn Recorded<T>) -> Places {
        let mut needed = Places::new();
        let mut pending: Vec<(usize, usize)> = targets.iter().copied().collect();
        while let Some((index, step)) = pending.pop() {
            if !needed.insert((index, step)) {
                continue;
            }
            let op = &self.program.ops[index];
            let stateful = op.kind.state().is_some();
            if stateful && step > 0 {
                pending.push((index, step - 1));
            }
            for input in &op.inputs {
                let written = stateful && recorded.has(index, step) && !targets.contains(&(index, step));
                if !recorded.has(input.0, step) && !written {
                    pending.push((input.0, step));
                }
            }
        }
        needed
    }

    /// The inputs of an operation, recorded or computed, as the edits leave them; and whether an edit touched
    /// any.
    fn edited_inputs<'a, T: Real>(
        &self,
        site: Site<'a>,
        keys: &'a StepKeys,
        recorded: &dyn Recorded<T>,
        flights: &mut BTreeMap<(usize, usize), Flight<T>>,
        edits: &'a dyn Edits<T>,
    ) -> Result<(Inputs<'a, T>, bool), Error> {
        let Site { op, step, steps, .. } = site;
        let mut edited = false;
        let mut values = Vec::with_capacity(op.inputs.len());
        for (number, input) in op.inputs.iter().enumerate() {
            if !flights.contains_key(&(input.0, step))
                && let Some(value) = recorded.read(input.0, step)?
            {
                let unrounded = |a| {
                    noise::before_storing(self.lanes, a, &self.program.ops[input.0], input.0, step, &value)
                };
                let lanes = self.arithmetic.map(unrounded).unwrap_or_default();
                flights.insert((input.0, step), Flight { exact: Arc::new(value), lanes });
            }
            // A cache that is recorded in an earlier step only says what was written: it has no input.
            let Some(flight) = flights.get(&(input.0, step)) else { continue };
            let edit = |t: &Arc<Tensor<T>>| edits.input(&site, number, t).map_or_else(|| t.clone(), Arc::new);
            let exact = edit(&flight.exact);
            edited |= !Arc::ptr_eq(&exact, &flight.exact);
            values.push(Flight { exact, lanes: flight.lanes.iter().map(edit).collect() });
        }
        let mut positions = steps[step].positions.clone();
        edits.positions(&site, &mut positions);
        let layer = tap::split(&op.tap).0;
        let read = keys.read_by(layer);
        let mut labels = read.to_vec();
        edits.keys(&site, &mut labels);
        let relabelled = labels != read;
        edited |= positions != steps[step].positions || relabelled;
        let step = StepInput { positions, ..steps[step].clone() };
        let keys = if relabelled { Cow::Owned(keys.relabelled(layer, labels)) } else { Cow::Borrowed(keys) };
        let mut inputs = Inputs { values, step: Cow::Owned(step), keys, edits: Some((edits, site)) };
        self.level_rows(op, &mut inputs);
        Ok((inputs, edited))
    }

    /// Appends rows to a cache, step by step.
    #[expect(clippy::too_many_arguments, reason = "what a cache operation is made of")]
    fn cache_rows<T: Real>(
        &self,
        index: usize,
        cache: State,
        at: &[usize],
        inputs: &[Inputs<T>],
        recorded: &dyn Recorded<T>,
        edits: &dyn Edits<T>,
        state: &mut KeyValues<T>,
        wanted: &[bool],
    ) -> Result<Rows<T>, Error> {
        let mut outputs = Vec::with_capacity(at.len());
        for ((&step, input), &wanted) in at.iter().zip(inputs).zip(wanted) {
            state.truncate(index, input.keys.kept_rows(cache.ratio), cache.heads * cache.dim);
            let shape = (cache.heads, cache.dim);
            let axis = input.keys.axis(tap::split(&self.program.ops[index].tap).0);
            if let Some(axis) = axis
                && recorded.has(index, step)
                && let Some(value) = recorded.read(index, step)?
            {
                state.give(index, axis, &value);
            }
            let Some(new) = input.values.first() else {
                let rows = match cache.ratio {
                    None => input.step.token_ids.len(),
                    Some(ratio) => {
                        let (all, before) = input.keys.entries(ratio);
                        all.len() - before
                    }
                };
                let value =
                    recorded.read(index, step)?.unwrap_or_else(|| Tensor::zeros([0, shape.0, shape.1]));
                let exact = if let Some(axis) = axis {
                    let unknown = Tensor::<T>::zeros([rows, shape.0, shape.1]);
                    state.store(index, unknown.data(), &[]);
                    state.replace_along(index, axis, &value, input.keys.kept);
                    state.along(index, axis, shape).0
                } else {
                    let rows = rows.min(value.rows());
                    state.append(index, crate::kernels::tail(&value, rows), &[], shape).0
                };
                outputs.push((exact, noise::Spread::default()));
                continue;
            };
            let mut lanes = new.lanes.clone();
            let format = self.arithmetic.map(|a| a.cache_of(&self.program.ops[index]));
            if let Some(format) = format {
                lanes = noise::stored_rows(self.lanes, format, (index, step), new, shape);
            }
            let (plain, lanes) = match axis {
                None => state.append(index, new.exact.data(), &lanes, shape),
                Some(axis) => {
                    state.store(index, new.exact.data(), &lanes);
                    state.along(index, axis, shape)
                }
            };
            let edited = |(l, t): (usize, Tensor<T>)| Arc::new(input.edited(Some(l), &t).unwrap_or(t));
            let lanes: Vec<Arc<Tensor<T>>> = lanes.into_iter().enumerate().map(edited).collect();
            let changed = input.edited(None, &plain);
            let terms = changed.is_some().then(|| edits.terms());
            let exact = changed.unwrap_or(plain);
            let noise = match self.arithmetic.zip(format) {
                Some((a, format)) if wanted => Some(noise::of_cache(a, format, &exact, &lanes, terms)),
                _ => None,
            };
            outputs.push((exact, noise::Spread { noise, lanes, choice: None }));
        }
        Ok(outputs)
    }
}
