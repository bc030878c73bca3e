//! # Cached rows written over weights
//!
//! The cache is sized with a wrong dimension, and rows that do not fit are written over what lies behind
//! it: weights.
//!
//! ## How it shows
//!
//! A weight changes between steps: outputs that were right in one step are wrong in the next, in a few
//! channels first, in more with every token.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#2622
//!
//! ## Fix
//!
//! Size the cache by key/value heads and head size of each layer, and check the slot before writing.

use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::Tensor;

use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(op) = scene.alone().filter(|_| scene.step > 1) else { return vec![] };
    let OpKind::Linear(linear) = &op.kind else { return vec![] };
    let Some(exact) = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape()) else { return vec![] };
    // Where the overwritten rows of the weight begin.
    let (row, engine) = (exact.row(0), scene.engine.row(0));
    let size = (row.iter().map(|y| y * y).sum::<f64>() / row.len() as f64).sqrt();
    let Some(first) = (0..row.len()).find(|&c| (row[c] - engine[c]).abs() > 0.05 * size) else { return vec![] };
    let (start, since) = (first * linear.input, scene.step - 1);
    let Some(cache) = last_cache(scene) else { return vec![] };
    let Some(weight) = scene.weight(&linear.weight) else { return vec![] };
    let mut edits = Vec::new();
    for (what, keys, values) in
        [("keys and values", true, true), ("keys", true, false), ("values", false, true)]
    {
        let (cache, weight, index) = (cache.clone(), weight.clone(), scene.op);
        let detail = format!("the last layer's {what} of step {since} on are written over the weight from row {first} on");
        edits.push(Edit::new(detail).fitted(1).output(move |at, inputs, value| {
            (at.site.index == index).then_some(())?;
            let mut written = Vec::new();
            for step in since..at.site.step {
                if keys {
                    written.extend(cache.keys(at, step)?);
                }
                if values {
                    written.extend(at.recorded(cache.values, step)?.into_data());
                }
            }
            let x = *inputs.first()?;
            let width = x.row_len();
            let mut out = value.clone();
            let outputs = out.row_len();
            for (i, new) in written.iter().enumerate() {
                let (channel, c) = ((start + i) / width, (start + i) % width);
                let change = new - f64::from(*weight.get(start + i)?);
                for row in 0..x.rows() {
                    out.data_mut()[row * outputs + channel] += x.row(row)[c] * change;
                }
            }
            Some(out)
        }));
    }
    edits
}

/// What the last layer writes into its cache.
#[derive(Clone)]
struct Written {
    /// The rotation of keys, and what it rotates.
    rope: Op,
    rotated: usize,
    before: usize,
    values: usize,
}

fn last_cache(scene: &Scene) -> Option<Written> {
    let ops = &scene.program().ops;
    let mut caches = ops.iter().rev().filter(|op| matches!(op.kind, OpKind::Cache(_)));
    let (values, keys) = (caches.next()?.inputs.first()?.0, caches.next()?.inputs.first()?.0);
    matches!(ops[keys].kind, OpKind::Rope(_)).then_some(())?;
    Some(Written { rope: ops[keys].clone(), rotated: keys, before: ops[keys].inputs.first()?.0, values })
}

impl Written {
    fn keys(&self, at: &At, step: usize) -> Option<Vec<f64>> {
        if let Some(keys) = at.recorded(self.rotated, step) {
            return Some(keys.into_data());
        }
        let OpKind::Rope(rope) = &self.rope.kind else { return None };
        let x: Tensor<f64> = at.recorded(self.before, step)?;
        let positions = &at.site.steps[step].positions;
        let frequencies = rope.frequencies.at(positions.iter().copied().max()?);
        let half = rope.dim / 2;
        let mut out = x.clone();
        for (row, (out, x)) in out.data_mut().chunks_mut(x.row_len()).zip(x.data().chunks(x.row_len())).enumerate() {
            for (out, x) in out.chunks_mut(rope.dim).zip(x.chunks(rope.dim)) {
                for (i, f) in frequencies.iter().enumerate() {
                    let (s, c) = (f64::from(*positions.get(row)?) * f).sin_cos();
                    out[i] = rope.amplitude * (x[i] * c - x[i + half] * s);
                    out[i + half] = rope.amplitude * (x[i + half] * c + x[i] * s);
                }
            }
        }
        Some(out.into_data())
    }
}
