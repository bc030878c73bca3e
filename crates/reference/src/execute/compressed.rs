//! Operations of models with hyper-connections and compressed keys.

use firstdiff_model::ops::{EntryPlace, VisibleKeys};
use firstdiff_model::{Axis, Op, OpKind};
use firstdiff_tensor::{Real, Tensor};

use super::Inputs;
use super::exact::tensor;
use crate::error::Error;
use crate::kernels::{self, Rounding, hyper, index_scores, tail, visible};
use crate::keys::{Entry, KeyLabel};
use crate::weights::Weights;

/// The value of one of these operations in one step.
pub(super) fn compute<T: Real>(
    op: &Op,
    values: &[&Tensor<T>],
    inputs: &Inputs<T>,
    weights: &Weights,
    r: Rounding,
) -> Result<Tensor<T>, Error> {
    let first = values[0];
    // The last rows that all inputs have: an engine may have computed only those.
    let rows = values.iter().map(|v| v.rows()).min().unwrap_or(0);
    let of = |i: usize| tail(values[i], rows);
    let shape = |rows: usize| {
        let mut shape = firstdiff_model::extents(&op.axes, rows, rows);
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
        shape
    };
    Ok(match &op.kind {
        OpKind::FakeQuant(quant) => tensor(first.shape().to_vec(), kernels::fake_quant(first.data(), quant)),
        OpKind::Streams(streams) => {
            let copies = |x: &[T]| x.repeat(streams.count);
            let data = first.data().chunks(streams.dim).flat_map(copies).collect();
            tensor(shape(first.rows()), data)
        }
        OpKind::HcWeights(hc) => {
            let (base, scale) = (weights.vector::<T>(&hc.base)?, weights.vector::<T>(&hc.scale)?);
            tensor(shape(rows), hyper::weights(first.data(), hc, &base, &scale, r))
        }
        OpKind::HcCollapse(hc) => tensor(shape(rows), hyper::collapse(of(0), of(1), rows, hc.dim, r)),
        OpKind::HcExpand(hc) => tensor(shape(rows), hyper::expand(of(0), of(1), of(2), of(3), hc, r)),
        OpKind::WideNorm(norm) => {
            let w = norm.weight.as_ref().map(|w| weights.vector::<T>(w)).transpose()?;
            tensor(shape(rows), kernels::wide_norm(first.data(), w.as_deref(), norm.dim, norm.eps, r))
        }
        OpKind::TailRope(rope) => {
            let positions = match rope.rows {
                Axis::NewEntries(ratio) => {
                    let place = |e: &Entry| match rope.entry {
                        EntryPlace::First => e.start,
                        EntryPlace::Last => e.start + ratio as u32 - 1,
                        EntryPlace::Number => e.start / ratio as u32,
                    };
                    new_entries(inputs, ratio).iter().map(place).collect()
                }
                _ => inputs.step.positions.clone(),
            };
            let positions = &positions[positions.len().saturating_sub(rows)..];
            tensor(shape(rows), kernels::tail_rope(first.data(), rope, positions, r))
        }
        OpKind::Pool(pool) => {
            let ape = weights.vector::<T>(&pool.ape)?;
            let entries = new_entries(inputs, pool.ratio);
            let at = (entries.as_slice(), inputs.keys.labels.len());
            tensor([entries.len(), pool.dim], kernels::pool(first, values[1], pool, &ape, at, r))
        }
        OpKind::JoinKeys(join) => {
            let data = [first.data(), values[1].data()].concat();
            tensor([first.rows() + values[1].rows(), 1, join.dim], data)
        }
        OpKind::IndexScores(scores) => {
            let tokens = first.rows().min(values[1].rows());
            let (q, w, k) = (tail(first, tokens), tail(values[1], tokens), values[2]);
            tensor([tokens, k.rows()], index_scores::index_scores(q, w, k.data(), scores))
        }
        OpKind::SinkProbs(probs) => {
            let sinks = probs.sink.as_ref().map(|s| weights.vector::<T>(s)).transpose()?;
            let data = visible::probabilities(first, values[1], probs, sinks.as_deref(), r);
            tensor(first.shape().to_vec(), data)
        }
        OpKind::GroupedLinear(linear) => {
            let data = weights.grouped_product(&linear.weight, first.data(), linear.groups, None)?;
            tensor(shape(rows), data)
        }
        other => unreachable!("{} is computed elsewhere", other.name()),
    })
}

/// The entries that this step completes.
fn new_entries<T>(inputs: &Inputs<T>, ratio: usize) -> Vec<Entry> {
    let (mut all, before) = inputs.keys.entries(ratio);
    all.split_off(before)
}

/// Which candidates each token sees.
pub(super) fn visible<T: Real>(seen: &VisibleKeys, values: &[&Tensor<T>], inputs: &Inputs<T>) -> Tensor<T> {
    let labels: Vec<KeyLabel> = inputs.step.labels().collect();
    let entries = seen.ratio.map(|ratio| inputs.keys.entries(ratio).0).unwrap_or_default();
    let (keys, choice) = (&inputs.keys.labels, values.get(1).copied());
    let data = visible::visible(&labels, keys, &entries, choice, seen);
    tensor([labels.len(), keys.len() + entries.len()], data)
}
