//! # A result written over what is still needed
//!
//! Two tensors share a buffer: the allocator thinks one of them is free, or an operation works in place.
//! What reads the first one later finds the second.
//!
//! ## How it shows
//!
//! A sum is twice its second term, or the activation is multiplied by itself. Keeping the tensors for a
//! trace may hide it.
//!
//! ## Seen in
//!
//! - ollama/ollama#14077
//! - ggml-org/llama.cpp#27311
//! - ggml-org/ggml#1501
//!
//! ## Fix
//!
//! Free a buffer after its last reader, not after its first.

use firstdiff_model::OpKind;
use firstdiff_model::ops::Activation;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    if scene.find(|k| matches!(k, OpKind::Add(_))).is_some() {
        for (what, which) in [("a branch", ""), ("attention", "attn_resid"), ("the MLP", "out")] {
            let detail = format!("the output of {what} is written over the residual stream before they are added");
            edits.push(Edit::new(detail).ops(move |op| {
                if matches!(op.kind, OpKind::Add(_)) && (which.is_empty() || short(op) == which) {
                    op.inputs = vec![op.inputs[1]; 2];
                }
            }));
        }
    }
    if scene.find(|k| matches!(k, OpKind::GatedAct(_))).is_some() {
        for (detail, from, to) in [("gate is written over up", 0, 1), ("up is written over gate", 1, 0)] {
            edits.push(Edit::new(detail).ops(move |op| {
                if matches!(op.kind, OpKind::GatedAct(_)) {
                    op.inputs[to] = op.inputs[from];
                }
            }));
        }
        edits.push(
            Edit::new("the activated gate is written over up, and multiplied by itself")
                .ops(|op| {
                    if matches!(op.kind, OpKind::GatedAct(_)) {
                        op.inputs[1] = op.inputs[0];
                    }
                })
                .input(|at, number, gate| {
                    let OpKind::GatedAct(act) = &at.op().kind else { return None };
                    let mut out = gate.clone();
                    for x in out.data_mut() {
                        *x = at.stored(activated(act.activation, *x)?);
                    }
                    (number == 1).then_some(out)
                }),
        );
    }
    edits
}

/// An activation's value, for those that models have.
pub(super) fn activated(activation: Activation, x: f64) -> Option<f64> {
    match activation {
        Activation::Silu => Some(x / (1.0 + (-x).exp())),
        Activation::GeluTanh => {
            let inner = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 * (x + 0.044715 * x.powi(3));
            Some(0.5 * x * (1.0 + inner.tanh()))
        }
        _ => None,
    }
}
