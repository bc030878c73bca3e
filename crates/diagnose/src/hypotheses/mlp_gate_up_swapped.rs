//! # Gate and up exchanged
//!
//! The activation is applied to `up` and multiplied by `gate`: the halves of a fused matrix in the other
//! order, or two tensors loaded into each other.
//!
//! ## How it shows
//!
//! `mlp_act` is wrong while `gate_proj` and `up_proj` are right; or those two hold each other's values.
//!
//! ## Seen in
//!
//! - ml-explore/mlx-lm#767
//! - nntrainer/nntrainer#4194
//!
//! ## Fix
//!
//! Split the fused output as the checkpoint stores it: gate first in Hugging Face's fused layouts.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    if scene.find(|k| matches!(k, OpKind::GatedAct(_))).is_some() {
        edits.push(Edit::new("the activation is applied to up, and multiplied by gate").ops(|op| {
            if matches!(op.kind, OpKind::GatedAct(_)) {
                op.inputs.swap(0, 1);
            }
        }));
    }
    if scene.find_tap("gate_proj").is_some() || scene.find_tap("up_proj").is_some() {
        edits.push(Edit::new("weights of gate and up are loaded into each other").ops(|op| {
            let swap = |name: &str| {
                if name.contains("gate_proj") { name.replace("gate_proj", "up_proj") } else { name.replace("up_proj", "gate_proj") }
            };
            if !matches!(short(op), "gate_proj" | "up_proj") {
                return;
            }
            if let OpKind::Linear(linear) = &mut op.kind {
                linear.weight = swap(&linear.weight);
                linear.bias = linear.bias.as_deref().map(swap);
            }
        }));
    }
    edits
}
