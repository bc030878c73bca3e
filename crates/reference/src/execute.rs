//! Executes a program, optionally with overrides, edits and rounding noise.

use std::borrow::Cow;
use std::sync::Arc;

use firstdiff_model::ops::State;
use firstdiff_model::{Axis, Op, OpKind, Program};
use firstdiff_tensor::{Float, Real, Tensor};
use firstdiff_trace::tap;

use crate::arithmetic::Arithmetic;
use crate::error::Error;
use crate::keys::{Fork, KeyAxes, KeyLabel, KeyValues, StepKeys, step_keys};
use crate::weights::Weights;

pub use choice::{Choice, TIE};

mod choice;
mod compressed;
mod exact;
mod noise;
mod products;
mod segment;
mod shared;
mod softmax;

pub use segment::{Edits, Predicted, Recorded, Site, Unedited};

/// The input rows of one forward call.
#[derive(Clone, Debug, Default)]
pub struct StepInput {
    /// Token of each row.
    pub token_ids: Vec<i64>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Sequence of each row.
    pub sequence: Vec<i64>,
    /// Whose keys attention reads, where the trace says so; else those stored.
    pub keys: KeyAxes,
    /// Sequences that begin here with keys of others.
    pub forks: Vec<Fork>,
    /// Which rows are computed past the last cache, where an engine computes fewer than all; without it, the last.
    pub rows: Option<Vec<usize>>,
}

impl StepInput {
    /// Rows of one sequence, from position `first` on.
    pub fn new(token_ids: &[i64], first: u32) -> StepInput {
        let positions = (first..).take(token_ids.len()).collect();
        let sequence = vec![0; token_ids.len()];
        StepInput { token_ids: token_ids.to_vec(), positions, sequence, ..StepInput::default() }
    }

    /// Which of the step's rows a tensor of `count` rows holds.
    pub fn held(&self, count: usize) -> Vec<usize> {
        let all = self.token_ids.len();
        match &self.rows {
            Some(rows) if rows.len() == count && count < all => rows.clone(),
            _ => (all.saturating_sub(count)..all).collect(),
        }
    }

    /// Some of the rows, in their order.
    fn select(&self, rows: &[usize]) -> StepInput {
        StepInput {
            token_ids: rows.iter().map(|&r| self.token_ids[r]).collect(),
            positions: rows.iter().map(|&r| self.positions[r]).collect(),
            sequence: rows.iter().map(|&r| self.sequence[r]).collect(),
            keys: self.keys.clone(),
            forks: vec![],
            rows: None,
        }
    }

    /// The first row of each sequence.
    pub(crate) fn first_rows(&self) -> impl Iterator<Item = KeyLabel> {
        let mut seen = std::collections::HashSet::new();
        self.labels().filter(move |label| seen.insert(label.sequence))
    }

    pub(crate) fn labels(&self) -> impl Iterator<Item = KeyLabel> {
        self.sequence
            .iter()
            .zip(&self.positions)
            .map(|(&sequence, &position)| KeyLabel { sequence, position })
    }
}

/// Exact values of an operation, and what rounding may do to each: one of both for each step.
type Values<T> = (Vec<Tensor<T>>, Vec<noise::Spread<T>>);

/// What rounding in the engine's arithmetic may do to one value.
#[derive(Clone, Debug)]
pub struct Noise<T> {
    /// Expected squared deviation of each element from the exact value, the last rounding included.
    pub variance: Vec<f64>,
    /// Possible values before that last rounding, one for each lane; empty where the operation's
    /// inner values do not round (the exact value is then the only one). Lane 0 rounds to nearest, the
    /// others at random; it stands alone where only sums in order round.
    pub lanes: Vec<Tensor<T>>,
    /// For each row of the last axis, the variance of `sum of error * direction` that comes from
    /// rounding the inputs of a product: one input moves many outputs, so their errors are not
    /// independent and `variance` does not tell. Empty where inputs are used as stored.
    pub along: Vec<f64>,
    /// For each row of the last axis, the variance of the same sum that comes from one factor for all of
    /// the row, drawn anew for every row: of probabilities, whose weights may be rounded before they are
    /// divided by their sum. Empty where there is none.
    pub factor: Vec<f64>,
    /// The format of the last rounding.
    pub store: Float,
    /// Which elements may err alike.
    pub repeats: Repeats,
    /// What keeps directions from following chance; see [`Noise::direction`].
    pub damping: Damping,
}

/// Sizes of a whole value that its single elements are seen against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Damping {
    /// A variance below which elements are not told apart.
    floor: f64,
    /// Expected squared error over squared value.
    relative: f64,
}

impl Damping {
    pub(crate) fn of<T: Real>(exact: &Tensor<T>, variance: &[f64], store: Float) -> Damping {
        let squares: f64 = exact.data().iter().map(|y| y.to_f64() * y.to_f64()).sum();
        if squares == 0.0 {
            return Damping::default();
        }
        let u = 1e-4 * store.unit_roundoff();
        let floor = u * u * squares / exact.len().max(1) as f64;
        Damping { floor, relative: variance.iter().sum::<f64>() / squares }
    }
}

impl<T: Real> Noise<T> {
    /// The weight of element `i`, whose exact value is `y`, when a common factor is fitted: precise
    /// elements count for more. With `y / variance` the fit would be the best there is, were the
    /// variance known. But a value that happens to need no rounding, or whose few lanes happen to agree,
    /// is no more precise than its neighbours: a mean rounding and the value's mean relative
    /// variance are added. And elements far smaller than the rest count for little: a probability of
    /// 10^-40 may be flushed to zero. Any weights are right, as long as the sum's deviation is theirs.
    pub fn direction(&self, i: usize, y: f64) -> f64 {
        let ulp = if self.store == Float::F64 { 0.0 } else { self.store.ulp(y) };
        let Damping { floor, relative } = self.damping;
        let variance = self.variance[i] + ulp * ulp / 12.0 + relative * y * y + floor;
        if variance > 0.0 { y / variance } else { y }
    }
}

/// Which elements of a value may err alike because what is rounded last repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Those rounded to the same number.
    Values,
    /// The last operation multiplies by a factor of the channel: those of one channel with the same
    /// digits, whatever their exponent.
    Channels,
    /// It multiplies by a table that all heads share: one channel of one token in all heads.
    Heads,
    /// It multiplies by one constant: those with the same digits anywhere.
    Digits,
}

/// A value, and what rounding may do to it where that was asked for.
#[derive(Debug)]
pub struct Computed<'a, T> {
    /// The operation, by its place in the program.
    pub op: usize,
    /// The step, counted from the first one executed.
    pub step: usize,
    /// The exact value.
    pub exact: &'a Tensor<T>,
    /// Present where the tap is recorded and the executor has an arithmetic.
    pub noise: Option<Noise<T>>,
    /// What a choice was made from; present where scores decide it and the executor has an arithmetic.
    pub choice: Option<&'a Choice>,
}

/// Recorded values: what to override, and what to look at.
pub trait Taps<T> {
    /// Whether a value is recorded for this operation in this step.
    fn recorded(&self, op: usize, step: usize) -> bool;

    /// The recorded value of an operation that is not executed; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn start(&mut self, _op: usize, _step: usize) -> Result<Option<Tensor<T>>, Error> {
        Ok(None)
    }

    /// Sees every value as it is computed; what it returns is used from there on in its place.
    ///
    /// # Errors
    /// Whatever stops the execution.
    fn visit(&mut self, computed: Computed<T>) -> Result<Option<Tensor<T>>, Error>;
}

/// No recorded values: the reference itself.
#[derive(Debug)]
pub struct Nothing;

impl<T> Taps<T> for Nothing {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, _computed: Computed<T>) -> Result<Option<Tensor<T>>, Error> {
        Ok(None)
    }
}

/// A value in flight.
#[derive(Clone, Debug)]
struct Flight<T> {
    exact: Arc<Tensor<T>>,
    /// Possible values in the engine's arithmetic; empty where all lanes equal the exact value.
    lanes: Vec<Arc<Tensor<T>>>,
}

/// Executes a program.
#[derive(Clone, Copy)]
pub struct Executor<'a> {
    /// What to execute.
    pub program: &'a Program,
    /// Where weights come from.
    pub weights: &'a Weights<'a>,
    /// The arithmetic whose rounding is measured; `None`: no noise is computed.
    pub arithmetic: Option<&'a Arithmetic>,
    /// Executions from which the noise of inner values is taken: one rounds to nearest, the others at
    /// random.
    pub lanes: usize,
    /// Called after every operation with the number done.
    pub progress: Option<&'a (dyn Fn(usize) + Sync)>,
}

/// The inputs of one operation in one step.
struct Inputs<'a, T> {
    values: Vec<Flight<T>>,
    step: Cow<'a, StepInput>,
    /// The keys stored, oldest first.
    keys: Cow<'a, StepKeys>,
    /// What is done to the output, and where.
    edits: Option<(&'a dyn Edits<T>, Site<'a>)>,
}

impl<T: Real> Inputs<'_, T> {
    /// The exact inputs, or those of a lane.
    fn tensors(&self, lane: Option<usize>) -> Vec<&Tensor<T>> {
        self.values.iter().map(|v| lane.and_then(|l| v.lanes.get(l)).unwrap_or(&v.exact).as_ref()).collect()
    }

    /// The output as an edit leaves it; `None` where there is none.
    fn edited(&self, lane: Option<usize>, value: &Tensor<T>) -> Option<Tensor<T>> {
        let (edits, site) = self.edits.as_ref()?;
        edits.output(site, &self.tensors(lane), value)
    }

    /// Of how many numbers each element of an edited output is the sum.
    fn terms(&self) -> usize {
        self.edits.as_ref().map_or(1, |(edits, _)| edits.terms())
    }
}

impl Executor<'_> {
    /// Executes all operations over all steps, operation by operation, so that each weight is read
    /// once. `keys` holds the caches from earlier calls and is carried on.
    ///
    /// # Errors
    /// When a token id is out of range, a weight cannot be read, or `taps` stops the execution.
    pub fn execute<T: Real>(
        &self,
        steps: &[StepInput],
        keys: &mut KeyValues<T>,
        taps: &mut impl Taps<T>,
    ) -> Result<(), Error> {
        let all: Vec<usize> = (0..self.program.ops.len()).collect();
        self.execute_some(&all, steps, keys, taps)
    }

    /// Executes some operations, given in their order. What they read from others is taken from `taps`.
    ///
    /// # Errors
    /// As [`Executor::execute`], and when a value that is read is neither executed nor recorded.
    pub fn execute_some<T: Real>(
        &self,
        ops: &[usize],
        steps: &[StepInput],
        keys: &mut KeyValues<T>,
        taps: &mut impl Taps<T>,
    ) -> Result<(), Error> {
        self.validate(steps)?;
        let step_keys = step_keys(&keys.labels, steps);
        if let Some(last) = step_keys.last() {
            keys.labels = last.labels.to_vec();
        }
        let last_uses = self.program.last_uses(ops);
        let mut flights: Vec<Vec<Option<Flight<T>>>> = vec![vec![]; self.program.ops.len()];
        for (done, &index) in ops.iter().enumerate() {
            let op = &self.program.ops[index];
            for input in op.inputs.iter().map(|v| v.0).filter(|v| ops.binary_search(v).is_err()) {
                if flights[input].is_empty() {
                    flights[input] = self.recorded(input, steps.len(), taps)?;
                }
            }
            let outputs = {
                let inputs: Vec<Inputs<T>> = steps
                    .iter()
                    .enumerate()
                    .map(|(s, step)| {
                        let mut inputs = Inputs {
                            values: op.inputs.iter().filter_map(|v| flights[v.0][s].clone()).collect(),
                            step: Cow::Borrowed(step),
                            keys: Cow::Borrowed(&step_keys[s]),
                            edits: None,
                        };
                        self.level_rows(op, &mut inputs);
                        inputs
                    })
                    .collect();
                if let Some(state) = op.kind.state() {
                    self.cache(index, state, &inputs, keys, taps)?
                } else {
                    self.operation(index, op, &inputs, taps)?
                }
            };
            flights[index] = outputs.into_iter().map(Some).collect();
            for input in op.inputs.iter().map(|v| v.0).chain([index]) {
                if last_uses[input] == index {
                    flights[input].clear();
                }
            }
            if let Some(progress) = self.progress {
                progress(done + 1);
            }
        }
        Ok(())
    }

    /// Where an engine computes chosen rows alone from some value on, brings what has all rows to the same ones.
    fn level_rows<T: Real>(&self, op: &Op, inputs: &mut Inputs<T>) {
        let Some(rows) = inputs.step.rows.clone() else { return };
        let all = inputs.step.token_ids.len();
        let axes: Vec<Option<usize>> = op
            .inputs
            .iter()
            .map(|input| self.program.op(*input).axes.iter().position(|axis| *axis == Axis::Tokens))
            .collect();
        if rows.len() >= all || axes.len() != inputs.values.len() {
            return;
        }
        let extent = |value: &Flight<T>, axis: usize| value.exact.shape().get(axis).copied();
        let fewer = |(value, axis): (&Flight<T>, &Option<usize>)| {
            axis.is_some_and(|axis| extent(value, axis) == Some(rows.len()))
        };
        if !inputs.values.iter().zip(&axes).any(fewer) {
            return;
        }
        for (value, axis) in inputs.values.iter_mut().zip(&axes) {
            if let Some(axis) = axis.filter(|&axis| extent(value, axis) == Some(all)) {
                let chosen = |t: &Arc<Tensor<T>>| Arc::new(t.select(axis, &rows));
                value.lanes = value.lanes.iter().map(chosen).collect();
                value.exact = chosen(&value.exact);
            }
        }
        inputs.step = Cow::Owned(inputs.step.select(&rows));
    }

    /// The recorded values of an operation in every step, as if it had been executed and overridden.
    fn recorded<T: Real>(
        &self,
        index: usize,
        steps: usize,
        taps: &mut impl Taps<T>,
    ) -> Result<Vec<Option<Flight<T>>>, Error> {
        let op = &self.program.ops[index];
        let flight = |step: usize| {
            let value =
                taps.start(index, step)?.ok_or_else(|| Error::NotRecorded { step, tap: op.tap.clone() })?;
            let unrounded = |a| noise::before_storing(self.lanes, a, op, index, step, &value);
            let lanes = self.arithmetic.map(unrounded).unwrap_or_default();
            Ok(Some(Flight { exact: Arc::new(value), lanes }))
        };
        (0..steps).map(flight).collect()
    }

    fn validate(&self, steps: &[StepInput]) -> Result<(), Error> {
        for (s, step) in steps.iter().enumerate() {
            for (row, &token) in step.token_ids.iter().enumerate() {
                if usize::try_from(token).ok().is_none_or(|t| t >= self.program.vocab) {
                    return Err(Error::Token { step: s, row, token, vocab: self.program.vocab });
                }
            }
        }
        Ok(())
    }

    /// Any operation without state.
    fn operation<T: Real>(
        &self,
        index: usize,
        op: &Op,
        inputs: &[Inputs<T>],
        taps: &mut impl Taps<T>,
    ) -> Result<Vec<Flight<T>>, Error> {
        let recorded: Vec<bool> = (0..inputs.len()).map(|s| taps.recorded(index, s)).collect();
        let (exact, mut noises) = self.values(index, op, inputs, &recorded)?;
        let mut outputs = Vec::with_capacity(inputs.len());
        for (s, exact) in exact.into_iter().enumerate() {
            let spread = std::mem::take(&mut noises[s]);
            let choice = spread.choice.as_ref();
            let computed = Computed { op: index, step: s, exact: &exact, noise: spread.noise, choice };
            let flight = match taps.visit(computed)? {
                Some(value) => {
                    let unrounded = |a| noise::before_storing(self.lanes, a, op, index, s, &value);
                    let lanes = self.arithmetic.map(unrounded).unwrap_or_default();
                    Flight { exact: Arc::new(value), lanes }
                }
                None => Flight { exact: Arc::new(exact), lanes: spread.lanes },
            };
            outputs.push(flight);
        }
        Ok(outputs)
    }

    /// The exact values of an operation, and what rounding may do to them, step by step.
    fn values<T: Real>(
        &self,
        index: usize,
        op: &Op,
        inputs: &[Inputs<T>],
        recorded: &[bool],
    ) -> Result<Values<T>, Error> {
        if op.kind.discrete().is_some() {
            return self.choose(op, inputs);
        }
        self.has_values(op, inputs)?;
        let plain = exact::compute(op, inputs, self.weights)?;
        let edited: Vec<Option<Tensor<T>>> =
            inputs.iter().zip(&plain).map(|(i, y)| i.edited(None, y)).collect();
        let noises = match self.arithmetic {
            None => inputs.iter().map(|_| noise::Spread::default()).collect(),
            Some(a) => noise::compute(self, a, index, op, inputs, (&plain, &edited), recorded)?,
        };
        let exact = plain.into_iter().zip(edited).map(|(plain, edited)| edited.unwrap_or(plain)).collect();
        Ok((exact, noises))
    }

    /// Attention's weights are of keys whose values are there: an engine may have recorded fewer of either.
    fn has_values<T: Real>(&self, op: &Op, inputs: &[Inputs<T>]) -> Result<(), Error> {
        if !matches!(op.kind, OpKind::AttnHeads(_)) {
            return Ok(());
        }
        let tap = |input: usize| self.program.ops[op.inputs[input].0].tap.clone();
        for (step, input) in inputs.iter().enumerate() {
            let keys = input.values[0].exact.shape().last().copied().unwrap_or(0);
            let values = &input.values[1].exact;
            if values.rows() < keys {
                return Err(Error::Shape {
                    step,
                    tap: tap(1),
                    found: values.shape().to_vec(),
                    reader: op.tap.clone(),
                    expected: format!("{keys} rows, for that many keys have weights in {}", tap(0)),
                });
            }
        }
        Ok(())
    }

    /// The cache operation: appends each step's rows to the state, in order.
    fn cache<T: Real>(
        &self,
        index: usize,
        cache: State,
        inputs: &[Inputs<T>],
        keys: &mut KeyValues<T>,
        taps: &mut impl Taps<T>,
    ) -> Result<Vec<Flight<T>>, Error> {
        let mut outputs = Vec::with_capacity(inputs.len());
        let source = self.program.ops[index].inputs[0].0;
        for (s, input) in inputs.iter().enumerate() {
            let new = &input.values[0];
            let rows = new.exact.rows();
            let mut lanes = new.lanes.clone();
            let recorded = taps.recorded(index, s);
            let format = self.arithmetic.map(|a| a.cache_of(&self.program.ops[index]));
            if let Some(format) = format {
                lanes = noise::stored_rows(self.lanes, format, (index, s), new, (cache.heads, cache.dim));
            }
            let shape = (cache.heads, cache.dim);
            keys.truncate(index, input.keys.kept_rows(cache.ratio), cache.heads * cache.dim);
            let axis = input.keys.axis(tap::split(&self.program.ops[index].tap).0);
            let (exact, lanes) = match axis {
                None => keys.append(index, new.exact.data(), &lanes, shape),
                Some(axis) => {
                    keys.store(index, new.exact.data(), &lanes);
                    keys.along(index, axis, shape)
                }
            };
            let lanes: Vec<_> = lanes.into_iter().map(Arc::new).collect();
            let noise = match self.arithmetic.zip(format) {
                Some((a, format)) if recorded => Some(noise::of_cache(a, format, &exact, &lanes, None)),
                _ => None,
            };
            let computed = Computed { op: index, step: s, exact: &exact, noise, choice: None };
            outputs.push(match taps.visit(computed)? {
                Some(value) => {
                    // What was written is known from the operation before, if recorded; else from here.
                    let written = !taps.recorded(source, s);
                    if let Some(axis) = axis {
                        let kept = input.keys.kept;
                        keys.give(index, axis, &value);
                        if written {
                            keys.replace_along(index, axis, &value, kept);
                        }
                    } else if written && value.rows() >= rows {
                        keys.replace_last(index, crate::kernels::tail(&value, rows));
                    }
                    let op = &self.program.ops[index];
                    let unrounded = |a| noise::before_storing(self.lanes, a, op, index, s, &value);
                    let lanes = self.arithmetic.map(unrounded).unwrap_or_default();
                    Flight { exact: Arc::new(value), lanes }
                }
                None => Flight { exact: Arc::new(exact), lanes },
            });
        }
        Ok(outputs)
    }
}
