//! What rounding in the engine's arithmetic may do to the value of an operation.
//!
//! Sums of products err independently element by element: their variance is computed. Everything
//! else is executed in several lanes with its inner values rounded at random. Attention's sums have both: what they
//! lose in order is no independent error. The last rounding, into the format the value is stored in, has a known
//! variance for each element.

use std::sync::Arc;

use firstdiff_model::ops::{Activation, Experts, Linear};
use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::{Float, Real, Tensor};
use rayon::prelude::*;

use super::exact::tensor;
use super::{Choice, Damping, Executor, Flight, Inputs, Noise, Repeats, exact, products, shared, softmax};
use crate::arithmetic::{Arithmetic, InputRounding};
use crate::cache::CacheFormat;
use crate::error::Error;
use crate::kernels::input::input_variance;
use crate::kernels::{self, Rounding, attention, index_scores, sum_variance};
use crate::random::Random;

/// Noise to report where the tap is recorded, lanes to go on with where it is not.
#[derive(Debug)]
pub(super) struct Spread<T> {
    pub noise: Option<Noise<T>>,
    pub lanes: Vec<Arc<Tensor<T>>>,
    /// What a choice was made from.
    pub choice: Option<Choice>,
}

impl<T> Default for Spread<T> {
    fn default() -> Self {
        Spread { noise: None, lanes: vec![], choice: None }
    }
}

/// The spread of `op` in every step.
pub(super) fn compute<T: Real>(
    executor: &Executor,
    arithmetic: &Arithmetic,
    index: usize,
    op: &Op,
    inputs: &[Inputs<T>],
    (plain, edited): (&[Tensor<T>], &[Option<Tensor<T>>]),
    recorded: &[bool],
) -> Result<Vec<Spread<T>>, Error> {
    let (shorter, truncates) = (arithmetic.is_shorter(op), arithmetic.truncates(op));
    let within = arithmetic.within(op);
    let arithmetic = within.as_ref();
    let sums = match &op.kind {
        OpKind::Linear(linear) => products::linear(executor, arithmetic, linear, inputs, plain)?,
        OpKind::GroupedLinear(linear) => products::grouped(executor, arithmetic, linear, inputs, plain)?,
        _ => {
            let sums = |(i, y): (&Inputs<T>, &Tensor<T>)| attention_sums(arithmetic, op, i, y);
            inputs.iter().zip(plain).map(sums).collect()
        }
    };
    let lanes = match &op.kind {
        OpKind::Linear(linear) => linear_lanes(executor, linear, inputs)?,
        OpKind::Experts(experts) => expert_lanes(executor, arithmetic, index, experts, inputs, recorded)?,
        _ => (0..inputs.len())
            .map(|s| pointwise_lanes(executor, (arithmetic, shorter), index, op, &inputs[s], s, recorded[s]))
            .collect::<Result<_, _>>()?,
    };
    let sums: Vec<Option<Vec<f64>>> = sums
        .into_iter()
        .enumerate()
        .map(|(s, sums)| match &edited[s] {
            Some(edited) => {
                let before = sums.and_then(|sums| edited_sums(&inputs[s], &plain[s], edited, sums));
                added(before, terms_variance(arithmetic, edited, inputs[s].terms()))
            }
            None => sums,
        })
        .collect();
    let lanes = lanes.into_iter().enumerate().map(|(s, lanes)| match &edited[s] {
        Some(_) => edited_lanes(&inputs[s], &plain[s], lanes),
        None => lanes,
    });
    let exact: Vec<&Tensor<T>> =
        plain.iter().zip(edited).map(|(plain, edited)| edited.as_ref().unwrap_or(plain)).collect();
    let lanes: Vec<Vec<Tensor<T>>> = lanes
        .zip(&exact)
        .zip(recorded)
        .map(|((lanes, exact), &recorded)| {
            leaning(executor, (arithmetic, truncates), op, lanes, exact, recorded)
        })
        .collect();
    let store = arithmetic.stored_in(op);
    let repeats = repeats(op, arithmetic);
    let table = is_table(op, arithmetic);
    let sums = sums.into_iter().zip(&exact).map(|(sums, exact)| match truncates {
        false => sums,
        // Up to a whole last place: a third of its square on average.
        true => {
            let cut = |y: &T| store.ulp(y.to_f64()).powi(2) / 3.0;
            added(sums, Some(exact.data().iter().map(cut).collect()))
        }
    });
    let parts = sums.zip(lanes).zip(&exact).enumerate();
    let mut spreads: Vec<Spread<T>> = parts
        .map(|(s, ((sums, lanes), exact))| {
            if recorded[s] {
                let variance = variance(exact, &lanes, sums.as_deref(), store, table);
                let damping = Damping::of(exact, &variance, store);
                return Spread {
                    noise: Some(Noise {
                        variance,
                        lanes,
                        along: vec![],
                        factor: vec![],
                        store,
                        repeats,
                        damping,
                    }),
                    lanes: vec![],
                    choice: None,
                };
            }
            let goes_on = goes_on_in(arithmetic, op, store);
            let lanes = (0..executor.lanes).into_par_iter().map(|lane| {
                let random = Random::new(lane, index, s).site(90);
                let value = lanes.get(lane).unwrap_or(*exact);
                Arc::new(stored(value, sums.as_deref(), goes_on, random, lane))
            });
            Spread { noise: None, lanes: lanes.collect(), choice: None }
        })
        .collect();
    let along = shared::along(executor, arithmetic, op, inputs, &exact, &spreads)?;
    for (spread, along) in spreads.iter_mut().zip(along) {
        if let Some(noise) = &mut spread.noise {
            noise.along = along;
        }
    }
    if matches!(op.kind, OpKind::AttnProbs(_)) && store != arithmetic.accumulate {
        for (spread, exact) in spreads.iter_mut().zip(&exact) {
            if let Some(noise) = &mut spread.noise {
                softmax::weights_first(exact, noise);
            }
        }
    }
    Ok(spreads)
}

/// The variance of sums behind an edit, to first order: what moving each element by its deviation does
/// to the edited value. Right for whatever moves, scales, replaces or maps single elements.
fn edited_sums<T: Real>(
    inputs: &Inputs<T>,
    plain: &Tensor<T>,
    edited: &Tensor<T>,
    sums: Vec<f64>,
) -> Option<Vec<f64>> {
    let mut moved = plain.clone();
    moved.data_mut().iter_mut().zip(&sums).for_each(|(y, v)| *y += T::from_f64(v.sqrt()));
    let moved = inputs.edited(None, &moved)?;
    let squared = |(a, b): (&T, &T)| (a.to_f64() - b.to_f64()).powi(2);
    (moved.len() == edited.len()).then(|| moved.data().iter().zip(edited.data()).map(squared).collect())
}

/// The variance of adding up the `terms` numbers, side by side in a row and of this size, that each element of
/// an edited value is the sum of: their own last rounding, and that of the partial sums.
fn terms_variance<T: Real>(a: &Arithmetic, edited: &Tensor<T>, terms: usize) -> Option<Vec<f64>> {
    (terms > 1).then_some(())?;
    let of = |run: &[T]| {
        let products = run.iter().map(|y| y.to_f64() * y.to_f64()).sum::<f64>() / run.len() as f64;
        let stored = sum_variance(a.store, 0, products, 0.0);
        let sum = |y: &T| stored + sum_variance(a.accumulate, terms, products, y.to_f64());
        run.iter().map(sum).collect::<Vec<_>>()
    };
    Some(edited.data().chunks(terms).flat_map(of).collect())
}

/// The sum of two variances, either of which may be none.
fn added(a: Option<Vec<f64>>, b: Option<Vec<f64>>) -> Option<Vec<f64>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.iter().zip(b).map(|(a, b)| a + b).collect()),
        (a, b) => a.or(b),
    }
}

/// The lanes of a value behind an edit.
fn edited_lanes<T: Real>(inputs: &Inputs<T>, plain: &Tensor<T>, lanes: Vec<Tensor<T>>) -> Vec<Tensor<T>> {
    // An edit may read inputs that differ from lane to lane where the operation itself has no lanes.
    let count = inputs.values.iter().map(|v| v.lanes.len()).max().unwrap_or(0).max(lanes.len());
    (0..count)
        .map(|lane| {
            let value = lanes.get(lane).unwrap_or(plain);
            inputs.edited(Some(lane), value).unwrap_or_else(|| value.clone())
        })
        .collect()
}

/// Whether the engine looks the operation's function up in a table.
fn is_table(op: &Op, a: &Arithmetic) -> bool {
    matches!(&op.kind, OpKind::GatedAct(act) if act.activation == Activation::GeluTanh)
        && a.gelu_table().is_some()
}

/// What is rounded last in an operation.
fn repeats(op: &Op, a: &Arithmetic) -> Repeats {
    match &op.kind {
        OpKind::RmsNorm(_) | OpKind::WideNorm(_) => Repeats::Channels,
        OpKind::Rope(_) | OpKind::TailRope(_) => Repeats::Heads,
        OpKind::AttnScores(s) if s.scale.log2().fract() != 0.0 => Repeats::Digits,
        OpKind::Embed(e) if e.scale != 1.0 => Repeats::Digits,
        OpKind::SoftCap(_) => Repeats::Digits,
        // A channel whose gate is nearly constant takes one entry of the table again and again.
        OpKind::GatedAct(_) if is_table(op, a) => Repeats::Channels,
        _ => Repeats::Values,
    }
}

/// Products that may be off by a common factor. Factors that are cut off to tf32 instead of rounded are
/// too small by up to half of their last place on average: the product leans towards zero by at most
/// two roundoffs of itself. And the constant by which scores are scaled is itself rounded.
fn leaning<T: Real>(
    executor: &Executor,
    (a, truncates): (&Arithmetic, bool),
    op: &Op,
    lanes: Vec<Tensor<T>>,
    exact: &Tensor<T>,
    recorded: bool,
) -> Vec<Tensor<T>> {
    let product = matches!(op.kind, OpKind::Linear(_) | OpKind::AttnScores(_) | OpKind::AttnHeads(_));
    let cut_off =
        if a.second_factor() == Some(Float::TF32) { 2.0 * Float::TF32.unit_roundoff() } else { 0.0 };
    let constant = match &op.kind {
        OpKind::AttnScores(s) if s.scale.log2().fract() != 0.0 => a.accumulate.unit_roundoff(),
        _ => 0.0,
    };
    // A result that is cut off is too small by half of its last place on average.
    let stored = if truncates { 2.0 * a.stored_in(op).unit_roundoff() } else { 0.0 };
    let factor = if product { cut_off + constant + stored } else { stored };
    if factor == 0.0 {
        return lanes;
    }
    let count = if recorded { executor.lanes.min(MEASURING) } else { executor.lanes };
    (0..count)
        .map(|lane| {
            let sign = if lane % 2 == 0 { -1.0 } else { 1.0 };
            let factor = T::from_f64(1.0 + sign * factor);
            let value = lanes.get(lane).unwrap_or(exact);
            let mut scaled = Tensor::zeros(value.shape());
            let pairs = scaled.data_mut().par_iter_mut().zip(value.data()).with_min_len(APIECE);
            pairs.for_each(|(y, &x)| *y = x * factor);
            scaled
        })
        .collect()
}

/// Elements that are worth a thread's while.
const APIECE: usize = 1024;

/// Fewer elements than this do not make up for few lanes.
const FEW: usize = 64;

/// `mean over random lanes of (lane - exact)^2 + last rounding of the lane`, plus `sums`.
fn variance<T: Real>(
    exact: &Tensor<T>,
    lanes: &[Tensor<T>],
    sums: Option<&[f64]>,
    store: Float,
    table: bool,
) -> Vec<f64> {
    let random = lanes.get(1..).unwrap_or_default();
    let element = |i: usize, y: T| {
        let y = y.to_f64();
        let sums = sums.map_or(0.0, |v| v[i]);
        if random.is_empty() {
            return store.rounding_variance(y) + sums;
        }
        let lane = |t: &Tensor<T>| {
            let z = t.data()[i].to_f64();
            (z - y) * (z - y) + store.rounding_variance(z)
        };
        // Of a handful of elements, one that rounds to nearest all the way may do what no random lane did. So may
        // one entry of a table, whose few roundings are coarse, and one element may carry a whole channel.
        let nearest = lanes.first().filter(|_| table || exact.len() < FEW).map_or(0.0, lane);
        (random.iter().map(lane).sum::<f64>() / random.len() as f64).max(nearest) + sums
    };
    exact.data().par_iter().enumerate().with_min_len(APIECE).map(|(i, &y)| element(i, y)).collect()
}

/// The format of a result that is not recorded: additions of a residual stream that is kept in a longer format are
/// never stored in `store`.
fn goes_on_in(a: &Arithmetic, op: &Op, store: Float) -> Float {
    match &op.kind {
        OpKind::Add(_) if a.residual.significand_bits() > store.significand_bits() => a.residual,
        _ => store,
    }
}

/// A value as an engine might store it; as most do, in lane 0.
fn stored<T: Real>(
    value: &Tensor<T>,
    sums: Option<&[f64]>,
    store: Float,
    random: Random,
    lane: usize,
) -> Tensor<T> {
    let (bits, normal) = (random.site(1), random.site(2));
    let mut out = value.clone();
    if lane == 0 {
        out.data_mut().iter_mut().for_each(|x| *x = T::from_f64(store.round(x.to_f64())));
        return out;
    }
    for (i, x) in out.data_mut().iter_mut().enumerate() {
        let error = sums.map_or(0.0, |v| v[i].sqrt() * normal.normal(i));
        *x = T::from_f64(store.round_randomly(x.to_f64() + error, bits.bits(i)));
    }
    out
}

/// Products of the lanes' inputs, where lanes differ.
fn linear_lanes<T: Real>(
    executor: &Executor,
    op: &Linear,
    inputs: &[Inputs<T>],
) -> Result<Vec<Vec<Tensor<T>>>, Error> {
    let rows: Vec<&Tensor<T>> =
        inputs.iter().flat_map(|i| i.values[0].lanes.iter().map(|l| l.as_ref())).collect();
    if rows.is_empty() {
        return Ok(inputs.iter().map(|_| vec![]).collect());
    }
    let bias = op.bias.as_ref().map(|b| executor.weights.vector::<T>(b)).transpose()?;
    let mut products = exact::linear(op, &rows, bias.as_deref(), executor.weights)?.into_iter();
    Ok(inputs.iter().map(|i| products.by_ref().take(i.values[0].lanes.len()).collect()).collect())
}

/// Mixtures of experts: everything inside, in every lane, with each expert read once.
fn expert_lanes<T: Real>(
    executor: &Executor,
    a: &Arithmetic,
    index: usize,
    op: &Experts,
    inputs: &[Inputs<T>],
    recorded: &[bool],
) -> Result<Vec<Vec<Tensor<T>>>, Error> {
    let counts: Vec<usize> = recorded
        .iter()
        .map(|&recorded| if recorded { executor.lanes.min(MEASURING) } else { executor.lanes })
        .collect();
    let mut runs = Vec::new();
    for (step, (inputs, &count)) in inputs.iter().zip(&counts).enumerate() {
        let lane = |lane| exact::run(inputs, Some((a, Random::new(lane, index, step), lane)), index);
        runs.extend((0..count).map(lane));
    }
    let mut lanes = kernels::experts::experts(op, &runs, executor.weights)?.into_iter();
    Ok(counts.into_iter().map(|count| lanes.by_ref().take(count).collect()).collect())
}

/// Variance of attention's sums of products, head by head.
fn attention_sums<T: Real>(
    a: &Arithmetic,
    op: &Op,
    inputs: &Inputs<T>,
    exact: &Tensor<T>,
) -> Option<Vec<f64>> {
    let value = |i: usize| inputs.values[i].exact.as_ref();
    let rounding = match &op.kind {
        OpKind::AttnScores(scores) => a.query_rounding(scores.scale),
        _ => a.probability_rounding(),
    };
    let second = |t: &Tensor<T>| -> Option<Vec<f64>> {
        Some(input_variance(t.data(), t.len(), InputRounding::Float(a.second_factor()?)))
    };
    let squares = |t: &Tensor<T>, format: Float, n: usize| -> Vec<f64> {
        let factor = sum_variance(format, n, 1.0, 0.0);
        let rounded = input_variance(t.data(), t.len(), rounding);
        let pairs = t.data().par_iter().zip(rounded).with_min_len(APIECE);
        pairs.map(|(x, v)| v + factor * x.to_f64() * x.to_f64()).collect()
    };
    let square = |t: &Tensor<T>| -> Vec<f64> {
        t.data().par_iter().with_min_len(APIECE).map(|x| x.to_f64() * x.to_f64()).collect()
    };
    match &op.kind {
        OpKind::IndexScores(scores) => {
            let tokens = value(0).rows().min(value(1).rows());
            let (q, w) = (kernels::tail(value(0), tokens), kernels::tail(value(1), tokens));
            Some(index_scores::variance(q, w, value(2).data(), scores, a.accumulate))
        }
        OpKind::AttnScores(scores) => {
            let (q, k) = (value(0), value(1));
            let products = attention::scores(
                &squares(q, a.accumulate, scores.dim),
                &square(k),
                scores,
                scores.scale * scores.scale,
            );
            let cached = second(k)
                .map(|v| attention::scores(&square(q), &v, scores, scores.scale * scores.scale).into_data());
            let power_of_two = scores.scale.log2().fract() == 0.0;
            let pairs = products.data().par_iter().zip(exact.data()).enumerate().with_min_len(APIECE);
            let sums = pairs.map(|(i, (v, y))| {
                let y = y.to_f64();
                let v = v + cached.as_ref().map_or(0.0, |c| c[i]);
                // The product is stored before it is scaled.
                let dot = y / scores.scale;
                let before = if power_of_two { 0.0 } else { a.store.rounding_variance(dot) };
                v + sum_variance(a.accumulate, scores.dim, 0.0, y) + before * scores.scale * scores.scale
            });
            Some(sums.collect())
        }
        OpKind::AttnHeads(heads) => {
            let (p, v) = (value(0), value(1));
            let keys = p.shape()[2];
            let format = a.attention_sums();
            let weights = Tensor::new(p.shape().to_vec(), squares(p, format, keys)).ok()?;
            let products = attention::heads(&weights, &square(v), heads);
            let squared = Tensor::new(p.shape().to_vec(), square(p)).ok()?;
            let cached = second(v).map(|v| attention::heads(&squared, &v, heads));
            let pairs = products.par_iter().zip(exact.data()).enumerate().with_min_len(APIECE);
            let sums = pairs.map(|(i, (v, y))| {
                let cached = cached.as_ref().map_or(0.0, |c| c[i]);
                v + cached + sum_variance(format, keys, 0.0, y.to_f64())
            });
            Some(sums.collect())
        }
        _ => None,
    }
}

/// Lanes of a value that is recorded and so replaced by the engine's own.
const MEASURING: usize = 5;

/// Whether an operation that works on one step alone rounds inner values.
fn rounds_inside(kind: &OpKind) -> bool {
    matches!(kind, OpKind::RmsNorm(_) | OpKind::Rope(_) | OpKind::AttnProbs(_) | OpKind::GatedAct(_))
        || matches!(kind, OpKind::RouterScores(_) | OpKind::RouterWeights(_) | OpKind::SoftCap(_))
        || matches!(kind, OpKind::WideNorm(_) | OpKind::TailRope(_) | OpKind::SinkProbs(_) | OpKind::Pool(_))
        || matches!(kind, OpKind::HcWeights(_) | OpKind::HcCollapse(_) | OpKind::HcExpand(_))
}

/// Elements of inputs up to which more lanes are executed, and how many.
const SMALL: usize = 1024;
const MANY: usize = 33;

/// The operation executed in every lane; empty where nothing in it rounds and the inputs agree. Where only a sum in order
/// rounds, lane 0 alone.
fn pointwise_lanes<T: Real>(
    executor: &Executor,
    (a, shorter): (&Arithmetic, bool),
    index: usize,
    op: &Op,
    inputs: &Inputs<T>,
    step: usize,
    recorded: bool,
) -> Result<Vec<Tensor<T>>, Error> {
    let rounds_inside = rounds_inside(&op.kind);
    let differ = shorter || inputs.values.iter().any(|v| !v.lanes.is_empty());
    let in_order = matches!(op.kind, OpKind::AttnHeads(_));
    if matches!(op.kind, OpKind::Embed(_)) || !rounds_inside && !differ && !in_order {
        return Ok(vec![]);
    }
    // Lanes that go no further only estimate a variance, from many elements each: fewer do. Where elements are
    // few, more lanes are needed, and cost little.
    let small = !differ && inputs.values.iter().all(|v| v.exact.len() <= SMALL);
    let lanes = match recorded {
        _ if in_order && !differ => 1,
        false => executor.lanes,
        true if small => MANY,
        true => executor.lanes.min(MEASURING),
    };
    (0..lanes)
        .into_par_iter()
        .map(|lane| {
            let value = |v: &Flight<T>| v.lanes.get(lane).unwrap_or(&v.exact).clone();
            let read: Vec<Arc<Tensor<T>>> = match shorter {
                false => inputs.values.iter().map(value).collect(),
                // What is computed in a shorter format is read in it.
                true => (inputs.values.iter().enumerate())
                    .map(|(n, v)| {
                        let random = Random::new(lane, index, step).site(94 + n as u64);
                        Arc::new(stored(&value(v), None, a.store, random, lane))
                    })
                    .collect(),
            };
            let values: Vec<&Tensor<T>> = read.iter().map(Arc::as_ref).collect();
            let rounding = Rounding::lane(a, Random::new(lane, index, step), lane, index);
            exact::pointwise(op, &values, inputs, executor.weights, rounding)
        })
        .collect()
}

/// New cache rows as each lane stores them: rounded to the cache's format. Later steps read them, even
/// where this step's cache is recorded.
pub(super) fn stored_rows<T: Real>(
    lanes: usize,
    format: CacheFormat,
    (index, step): (usize, usize),
    new: &Flight<T>,
    shape: (usize, usize),
) -> Vec<Arc<Tensor<T>>> {
    // Values already held in the cache's format are not rounded again.
    if new.lanes.is_empty() && format.holds(new.exact.data()) {
        return vec![];
    }
    let lane = |lane: usize| {
        let value = new.lanes.get(lane).unwrap_or(&new.exact);
        let random = (lane > 0).then(|| Random::new(lane, index, step).site(92));
        Arc::new(tensor(value.shape(), format.stored(value.data(), shape, random)))
    };
    (0..lanes).into_par_iter().map(lane).collect()
}

/// A recorded value as it may have been before it was stored, where engines go on from that: all values of engines
/// whose compilers fuse operations, else the residual stream.
pub(super) fn before_storing<T: Real>(
    lanes: usize,
    a: &Arithmetic,
    op: &Op,
    index: usize,
    step: usize,
    value: &Tensor<T>,
) -> Vec<Arc<Tensor<T>>> {
    let stored = a.stored_in(op);
    let stream = matches!(op.kind, OpKind::Add(_)) && a.residual != stored;
    // Attention multiplies cached numbers by their scales, in a longer format than they are recorded in.
    let scaled = matches!(op.kind, OpKind::Cache(_)) && a.cache_of(op).float().is_none();
    let kept = op.kind.discrete().is_some() || op.kind.state().is_some();
    if !scaled && (kept || !stream && !a.reads_unrounded) {
        return vec![];
    }
    let lane = |lane: usize| {
        let random = Random::new(lane, index, step).site(92);
        let mut stream = value.clone();
        let inner = if lane == 0 { &mut [] } else { stream.data_mut() };
        for (i, x) in inner.iter_mut().enumerate() {
            // Anything within half a unit in the last place was stored as this.
            *x = T::from_f64(x.to_f64() + 0.5 * stored.ulp(x.to_f64()) * random.symmetric(i));
        }
        Arc::new(stream)
    };
    (0..lanes).into_par_iter().map(lane).collect()
}

/// Noise of a recorded cache.
pub(super) fn of_cache<T: Real>(
    a: &Arithmetic,
    cache: CacheFormat,
    exact: &Tensor<T>,
    lanes: &[Arc<Tensor<T>>],
    edited: Option<usize>,
) -> Noise<T> {
    let lanes: Vec<Tensor<T>> = lanes.iter().map(|l| l.as_ref().clone()).collect();
    let copied = lanes.is_empty() && edited.is_none() && cache.holds(exact.data());
    // The steps of whole numbers are not those of any float format.
    let format = cache.float().filter(|_| !copied).unwrap_or(Float::F64);
    // Lanes are rounded already; where only that rounding tells them apart its own variance is the
    // better estimate.
    let sums = edited.and_then(|terms| terms_variance(a, exact, terms));
    let mut spread = variance(exact, &lanes, sums.as_deref(), format, false);
    if !copied {
        let [_, heads, dim] = *exact.shape() else { unreachable!("a cache has three axes") };
        let rounding = cache.variance(exact.data(), (heads, dim));
        spread.iter_mut().zip(rounding).for_each(|(v, rounding)| *v = v.max(rounding));
    }
    let damping = Damping::of(exact, &spread, format);
    let (along, factor) = (vec![], vec![]);
    Noise { variance: spread, lanes, along, factor, store: format, repeats: Repeats::Values, damping }
}
