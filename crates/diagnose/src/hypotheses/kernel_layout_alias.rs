//! # A tensor written in one order of axes and read in another
//!
//! One kernel writes `[H, T, D]`, the next one reads `[T, H, D]`: heads and tokens are exchanged.
//!
//! ## How it shows
//!
//! The values are all there, in other places; with one token nothing is wrong.
//!
//! ## Seen in
//!
//! - guqiong96/Lvllm#68
//!
//! ## Fix
//!
//! Give the order of axes with every buffer, and test with as many heads as no token count has.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for &index in &scene.ops {
        let op = &scene.program().ops[index];
        let name = short(op);
        if matches!(
            op.kind,
            OpKind::AttnHeads(_) | OpKind::Rope(_) | OpKind::AttnScores(_) | OpKind::AttnProbs(_)
        ) {
            let detail = format!("the first two axes of {name} are exchanged between writing and reading");
            for exchange in [written, read] {
                let name = name.to_string();
                edits.push(
                    Edit::new(detail.clone())
                        .output(move |at, _, value| (at.tap() == name).then(|| exchange(value)).flatten()),
                );
            }
        }
        edits.extend(inputs_exchanged(scene, index));
    }
    edits
}

/// What an operation of attention reads from recorded values, with its first two axes exchanged.
pub(super) fn inputs_exchanged(scene: &Scene, index: usize) -> Vec<Edit> {
    let op = &scene.program().ops[index];
    let attention = matches!(op.kind, OpKind::AttnHeads(_) | OpKind::AttnScores(_) | OpKind::AttnProbs(_));
    if !attention && short(op) != "attn_out" {
        return vec![];
    }
    let mut edits = Vec::new();
    for (number, from) in op.inputs.iter().enumerate().filter(|(_, from)| !scene.ops.contains(&from.0)) {
        let from = short(&scene.program().ops[from.0]);
        for exchange in [written, read] {
            let name = short(op).to_string();
            let detail = format!("the first two axes of {from} are exchanged when {name} reads it");
            edits.push(Edit::new(detail).input(move |at, n, value| {
                (at.tap() == name && n == number).then(|| exchange(value)).flatten()
            }));
        }
    }
    edits
}

/// Written in the other order, read in this one.
fn written(value: &Tensor<f64>) -> Option<Tensor<f64>> {
    let &[_, _, _] = value.shape() else { return None };
    Tensor::new(value.shape().to_vec(), value.permute(&[1, 0, 2]).into_data()).ok()
}

/// Written in this order, read in the other one.
fn read(value: &Tensor<f64>) -> Option<Tensor<f64>> {
    let &[a, b, c] = value.shape() else { return None };
    Some(Tensor::new([b, a, c], value.data().to_vec()).ok()?.permute(&[1, 0, 2]))
}
