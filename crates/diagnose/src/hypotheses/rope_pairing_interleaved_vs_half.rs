//! # Rotary pairs: neighbours instead of halves, or the reverse
//!
//! Two conventions exist. A head's channels are rotated in pairs `(i, i + D/2)`, or in pairs `(2i, 2i +
//! 1)`. Weights are made for one of them; the engine uses the other.
//!
//! ## How it shows
//!
//! Position 0 agrees. From position 1 on every head is wrong, more so in the fast pairs. Norms of queries
//! and keys are unchanged. Text is fluent for a word or two, then is not.
//!
//! ## Seen in
//!
//! - ikawrakow/ik_llama.cpp#2290
//! - ggml-org/llama.cpp#13260
//! - ggml-org/llama.cpp#13261
//! - paiml/aprender#2084
//!
//! ## Fix
//!
//! Rotate in the convention that the weights are stored for. llama.cpp's converter reorders the rows of q
//! and k of `llama` for neighbours; Hugging Face's order is for halves.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::tools::{at_rope, gather, ropes};
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let edit = |(which, set): (&str, fn(&str) -> bool)| {
        Edit::new(format!("channels 2i and 2i+1 are rotated together where the model pairs i with i + D/2{which}"))
            .input(move |at, _, x| at_rope(at, set).then(|| apart(at, x)).flatten())
            .output(move |at, _, y| at_rope(at, set).then(|| together(at, y)).flatten())
    };
    let mut edits: Vec<Edit> = ropes(scene).into_iter().map(edit).collect();
    if scene.find(|k| matches!(k, OpKind::TailRope(_))).is_some() {
        let detail = "channels i and i + r/2 of the rotated ones turn together where the model pairs neighbours";
        edits.push(Edit::new(detail).ops(|op| {
            if let OpKind::TailRope(rope) = &mut op.kind {
                rope.halves = true;
            }
        }));
    }
    edits
}

/// Neighbours to halves.
fn apart(at: &At, x: &Tensor<f64>) -> Option<Tensor<f64>> {
    let OpKind::Rope(rope) = &at.op().kind else { return None };
    let (dim, half) = (rope.dim, rope.dim / 2);
    Some(gather(x, dim, |i| if i < half { 2 * i } else { 2 * (i - half) + 1 }))
}

/// Halves to neighbours.
fn together(at: &At, y: &Tensor<f64>) -> Option<Tensor<f64>> {
    let OpKind::Rope(rope) = &at.op().kind else { return None };
    let half = rope.dim / 2;
    Some(gather(y, rope.dim, |i| i / 2 + i % 2 * half))
}
