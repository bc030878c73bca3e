//! The exact value of an operation.

use firstdiff_model::ops::Linear;
use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::tap;

use super::{Inputs, compressed};
use crate::arithmetic::Arithmetic;
use crate::error::Error;
use crate::kernels::experts::Run;
use crate::kernels::{self, Rounding, attention, router};
use crate::keys::KeyLabel;
use crate::random::Random;
use crate::weights::Weights;

/// The values of `op` in every step.
pub(super) fn compute<T: Real>(
    op: &Op,
    inputs: &[Inputs<T>],
    weights: &Weights,
) -> Result<Vec<Tensor<T>>, Error> {
    match &op.kind {
        OpKind::Linear(linear) => {
            let rows: Vec<&Tensor<T>> = inputs.iter().map(|i| i.values[0].exact.as_ref()).collect();
            let bias = linear.bias.as_ref().map(|b| weights.vector::<T>(b)).transpose()?;
            self::linear(linear, &rows, bias.as_deref(), weights)
        }
        OpKind::Experts(experts) => {
            let runs: Vec<Run<T>> = inputs.iter().map(|i| run(i, None, 0)).collect();
            kernels::experts::experts(experts, &runs, weights)
        }
        OpKind::Embed(embed) => inputs
            .iter()
            .map(|i| {
                let rows = i.step.token_ids.iter().map(|&t| t as usize);
                let mut data = weights.rows(&embed.weight, rows)?;
                if embed.scale != 1.0 {
                    let scale = weights.constant(embed.scale);
                    data.iter_mut().for_each(|x| *x *= scale);
                }
                Ok(shaped(op, i.step.token_ids.len(), 0, data))
            })
            .collect(),
        _ => inputs
            .iter()
            .map(|i| {
                let values: Vec<&Tensor<T>> = i.values.iter().map(|v| v.exact.as_ref()).collect();
                pointwise(op, &values, i, weights, Rounding::exact())
            })
            .collect(),
    }
}

/// One execution of a mixture of experts: exact, or lane `number` of operation `turn`.
pub(super) fn run<'a, T: Real>(
    inputs: &'a Inputs<'_, T>,
    lane: Option<(&'a Arithmetic, Random, usize)>,
    turn: usize,
) -> Run<'a, T> {
    let value = |i: usize| {
        let flight = &inputs.values[i];
        lane.and_then(|(.., number)| flight.lanes.get(number)).unwrap_or(&flight.exact).as_ref()
    };
    Run { x: value(0), choice: value(1), weights: value(2), lane, turn }
}

/// A matrix product over the rows of all steps at once.
pub(super) fn linear<T: Real>(
    op: &Linear,
    inputs: &[&Tensor<T>],
    bias: Option<&[T]>,
    weights: &Weights,
) -> Result<Vec<Tensor<T>>, Error> {
    let mut product = match inputs {
        [one] => weights.product(&op.weight, one.data(), None)?,
        many => {
            let stacked: Vec<T> = many.iter().flat_map(|t| t.data().iter().copied()).collect();
            weights.product(&op.weight, &stacked, None)?
        }
    };
    if let Some(bias) = bias {
        for row in product.chunks_mut(op.output) {
            row.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
        }
    }
    let mut outputs = Vec::with_capacity(inputs.len());
    let mut rest = product;
    for input in inputs {
        let rows = input.rows();
        let tail = rest.split_off(rows * op.output);
        outputs.push(tensor([rows, op.output], rest));
        rest = tail;
    }
    Ok(outputs)
}

/// Any operation that works on one step alone.
pub(super) fn pointwise<T: Real>(
    op: &Op,
    values: &[&Tensor<T>],
    inputs: &Inputs<T>,
    weights: &Weights,
    rounding: Rounding,
) -> Result<Tensor<T>, Error> {
    let first = values[0];
    Ok(match &op.kind {
        OpKind::RmsNorm(norm) => {
            let w = weights.vector::<T>(&norm.weight)?;
            shaped(op, first.rows(), 0, kernels::rms_norm(first.data(), &w, norm, rounding))
        }
        OpKind::Rope(rope) => {
            let positions = &inputs.step.positions;
            let positions = &positions[positions.len().saturating_sub(first.rows())..];
            shaped(op, first.rows(), 0, kernels::rope(first.data(), rope, positions, rounding))
        }
        OpKind::AttnScores(scores) => attention::scores(first.data(), values[1].data(), scores, scores.scale),
        OpKind::AttnProbs(probs) => {
            let (rows, keys) = (first.shape()[1], first.shape()[2]);
            let labels: Vec<KeyLabel> = inputs.step.labels().collect();
            let rows = &labels[labels.len().saturating_sub(rows)..];
            let all = inputs.keys.read_by(tap::split(&op.tap).0);
            let keys = &all[all.len().saturating_sub(keys)..];
            let data = attention::probabilities(first, probs, rows, keys, rounding);
            tensor(first.shape().to_vec(), data)
        }
        OpKind::AttnHeads(heads) => {
            let v = values[1].data();
            let data = match rounding.attention_in_order() {
                Some(format) => attention::heads_in_order(first, v, heads, format),
                None => attention::heads(first, v, heads),
            };
            shaped(op, first.shape()[1], 0, data)
        }
        OpKind::Add(_) => shaped(op, first.rows().min(values[1].rows()), 0, kernels::add(first, values[1])),
        OpKind::GatedAct(act) => {
            let rows = first.rows().min(values[1].rows());
            let (gate, up) = (kernels::tail(first, rows), kernels::tail(values[1], rows));
            shaped(op, rows, 0, kernels::gated_act(gate, up, act, rounding))
        }
        OpKind::SoftCap(cap) => {
            shaped(op, first.rows(), 0, kernels::soft_cap(first.data(), cap.cap, rounding))
        }
        OpKind::RouterScores(scores) => {
            shaped(op, first.rows(), 0, router::scores(first.data(), first.row_len(), scores, rounding))
        }
        OpKind::RouterWeights(weights) => {
            let rows = first.rows().min(values[1].rows());
            let choice = (kernels::tail(values[1], rows), values[1].row_len().max(1));
            let data =
                router::weights(kernels::tail(first, rows), first.row_len(), choice, weights, rounding);
            shaped(op, rows, 0, data)
        }
        OpKind::FakeQuant(_)
        | OpKind::Streams(_)
        | OpKind::HcWeights(_)
        | OpKind::HcCollapse(_)
        | OpKind::HcExpand(_)
        | OpKind::WideNorm(_)
        | OpKind::TailRope(_)
        | OpKind::Pool(_)
        | OpKind::JoinKeys(_)
        | OpKind::IndexScores(_)
        | OpKind::SinkProbs(_)
        | OpKind::GroupedLinear(_) => compressed::compute(op, values, inputs, weights, rounding)?,
        OpKind::EntryCache(_)
        | OpKind::Linear(_)
        | OpKind::Embed(_)
        | OpKind::Experts(_)
        | OpKind::Cache(_) => {
            unreachable!("handled over all steps at once")
        }
        OpKind::TopK(_) | OpKind::TableChoice(_) | OpKind::IndexTopK(_) | OpKind::VisibleKeys(_) => {
            unreachable!("choices are made in choice.rs")
        }
    })
}

/// Data in the shape of the operation's axes.
pub(super) fn shaped<T: Real>(op: &Op, tokens: usize, keys: usize, data: Vec<T>) -> Tensor<T> {
    tensor(firstdiff_model::extents(&op.axes, tokens, keys), data)
}

pub(super) fn tensor<T: Real>(shape: impl Into<Vec<usize>>, data: Vec<T>) -> Tensor<T> {
    let shape = shape.into();
    Tensor::new(shape, data).unwrap_or_else(|e| unreachable!("kernels return whole tensors: {e}"))
}
