//! # A weight that was never loaded
//!
//! A tensor keeps what it was created with: zeros, or ones in a norm. The loader's list lacks it, or its
//! name did not match.
//!
//! ## How it shows
//!
//! One operation's output is all zero, or looks as if the weight were one, or is a product with a matrix that has
//! nothing to do with the file's. The last is only seen in a trace with more tokens than the matrix has
//! input channels.
//!
//! ## Seen in
//!
//! - EfficientMoE/MoE-Infinity#136
//!
//! ## Fix
//!
//! Fail when a parameter was not loaded, or when a tensor of the file was not used.

use firstdiff_model::OpKind;

use super::fits::unrelated;
use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for &index in &scene.ops {
        let op = &scene.program().ops[index];
        if op.tap == "logits" {
            continue; // a class of its own
        }
        let (what, value): (_, f32) = match &op.kind {
            OpKind::Linear(_) => ("zeros", 0.0),
            OpKind::RmsNorm(_) => ("ones", 1.0),
            _ => continue,
        };
        let tap = short(op).to_string();
        // Matrices and norm weights; biases have a class of their own.
        let names: Vec<String> = scene
            .program()
            .ops
            .iter()
            .filter(|o| short(o) == tap)
            .filter_map(|o| o.kind.weights().first().map(|(name, _)| name.to_string()))
            .collect();
        edits.push(
            Edit::new(format!("the weight of {tap} was never loaded: {what}"))
                .weight(move |w| names.iter().any(|n| n == w.name).then(|| vec![value; w.shape.iter().product()])),
        );
    }
    if scene.program().ops[scene.op].tap != "logits" {
        edits.extend(unrelated(scene));
    }
    edits
}
