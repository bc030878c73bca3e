//! # The norm's output added back instead of its input
//!
//! `N(h) + f(N(h))` instead of `h + f(N(h))`: the norm wrote over the residual, or the wrong tensor is kept
//! for the addition.
//!
//! ## How it shows
//!
//! The residual stream after a branch, minus the branch's output, equals the norm's output.
//!
//! ## Seen in
//!
//! - Howuhh/faster-trajectory-transformer#3
//!
//! ## Fix
//!
//! Keep the stream before the norm, and normalise into another buffer.

use firstdiff_model::{OpKind, Program, Value};

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::Add(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("the norm's output is added where the model adds its input").program(|program| {
        for index in 0..program.ops.len() {
            if matches!(program.ops[index].kind, OpKind::Add(_))
                && let Some(norm) = norm_of(program, program.ops[index].inputs[0], index)
            {
                program.ops[index].inputs[0] = norm;
            }
        }
    })]
}

/// The norm that reads the residual stream `stream`, before operation `end`.
fn norm_of(program: &Program, stream: Value, end: usize) -> Option<Value> {
    let reads = |i: &usize| {
        matches!(program.ops[*i].kind, OpKind::RmsNorm(_)) && program.ops[*i].inputs.first() == Some(&stream)
    };
    (stream.0..end).find(reads).map(Value)
}
