//! # Attention and MLP side by side, or their norms exchanged
//!
//! Some families feed attention and MLP from the same input, others one after the other. The engine has the
//! other kind's wiring, or the weights of the two norms are loaded into each other.
//!
//! ## How it shows
//!
//! `mlp_norm` is the norm of the layer's input; or each norm's output has the other's weight.
//!
//! ## Seen in
//!
//! - antonellof/ferrox#236
//!
//! ## Fix
//!
//! Take the wiring from the family, and check names of norms against the checkpoint.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    if scene.find_tap("mlp_norm").is_some() {
        edits.push(Edit::new("the MLP reads the layer's input, beside attention").program(|program| {
            let mut input = None;
            for op in &mut program.ops {
                match (short(op), &op.kind) {
                    ("attn_norm", OpKind::RmsNorm(_)) => input = Some(op.inputs.clone()),
                    ("mlp_norm", OpKind::RmsNorm(_)) => op.inputs = input.take().unwrap_or_else(|| op.inputs.clone()),
                    _ => {}
                }
            }
        }));
    }
    if scene.find_tap("attn_norm").or(scene.find_tap("mlp_norm")).is_some() {
        edits.push(Edit::new("weights of a layer's two norms are loaded into each other").program(|program| {
            let mut first: Option<usize> = None;
            for i in 0..program.ops.len() {
                match short(&program.ops[i]) {
                    "attn_norm" => first = Some(i),
                    "mlp_norm" => {
                        let Some(first) = first.take() else { continue };
                        let (a, b) = program.ops.split_at_mut(i);
                        if let (OpKind::RmsNorm(a), OpKind::RmsNorm(b)) = (&mut a[first].kind, &mut b[0].kind) {
                            std::mem::swap(&mut a.weight, &mut b.weight);
                        }
                    }
                    _ => {}
                }
            }
        }));
    }
    edits
}
