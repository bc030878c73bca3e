//! # Heads normalised after the rotation
//!
//! The norm over heads of q and k comes after the rotation, where the model has it before; with a weight
//! that is the same for both channels of each pair nothing would change.
//!
//! ## How it shows
//!
//! Right at position 0. An error of a tenth of a percent is seen on a real model, with a cosine of 0.99995.
//!
//! ## Seen in
//!
//! - vllm-project/vllm-metal#660
//! - meta-pytorch/torchtune#2809
//!
//! ## Fix
//!
//! Norm, then rotate.

use firstdiff_model::ops::Rope;
use firstdiff_model::{OpKind, Program, RopeFrequencies, Value};
use firstdiff_tensor::Tensor;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    if scene.find_tap("q_rope").or(scene.find_tap("k_rope")).is_some() && !pairs(scene.program()).is_empty() {
        // Norm and rotation in one kernel: only the result is there.
        edits.push(Edit::new("heads are normalised after the rotation").program(|program| {
            for (norm, rope) in pairs(program) {
                let kind = program.ops[norm].kind.clone();
                program.ops[norm].kind = std::mem::replace(&mut program.ops[rope].kind, kind);
            }
        }));
    }
    if scene.find_tap("q_norm").or(scene.find_tap("k_norm")).is_some() && !pairs(scene.program()).is_empty() {
        // As modules: what the norm gives is rotated already, and is not rotated again.
        let ropes: Vec<(usize, Rope)> = pairs(scene.program())
            .into_iter()
            .filter_map(|(norm, rope)| match &scene.program().ops[rope].kind {
                OpKind::Rope(kind) => Some((norm, kind.clone())),
                _ => None,
            })
            .collect();
        edits.push(
            Edit::new("heads are normalised after the rotation")
                .ops(|op| {
                    if let OpKind::Rope(rope) = &mut op.kind {
                        rope.frequencies = RopeFrequencies::Fixed(vec![0.0; rope.dim / 2]);
                        rope.amplitude = 1.0;
                    }
                })
                .input(move |at, _, x| {
                    let (_, rope) = ropes.iter().find(|(norm, _)| *norm == at.site.index)?;
                    Some(rotated(x, rope, &at.site.steps[at.site.step].positions, |x| at.stored(x)))
                }),
        );
    }
    edits
}

/// Each norm over heads whose output is rotated next, and that rotation.
fn pairs(program: &Program) -> Vec<(usize, usize)> {
    let norm = |i: usize| program.ops[i].inputs.first().copied().filter(|Value(n)| matches!(short(&program.ops[*n]), "q_norm" | "k_norm"));
    (0..program.ops.len())
        .filter(|&i| matches!(program.ops[i].kind, OpKind::Rope(_)))
        .filter_map(|i| Some((norm(i)?.0, i)))
        .collect()
}

/// Rows `[T, heads D]`, each head rotated.
fn rotated(x: &Tensor<f64>, rope: &Rope, positions: &[u32], stored: impl Fn(f64) -> f64) -> Tensor<f64> {
    let frequencies = rope.frequencies.at(positions.iter().copied().max().unwrap_or(0));
    let (half, mut out) = (rope.dim / 2, x.clone());
    let width = rope.heads * rope.dim;
    for ((out, x), &position) in out.data_mut().chunks_mut(width).zip(x.data().chunks(width)).zip(positions) {
        for (i, f) in frequencies.iter().enumerate().take(half) {
            let (sine, cosine) = (f64::from(position) * f).sin_cos();
            let (sine, cosine) = (stored(sine * rope.amplitude), stored(cosine * rope.amplitude));
            for head in (0..rope.heads).map(|head| head * rope.dim) {
                let (a, b) = (x[head + i], x[head + i + half]);
                out[head + i] = stored(stored(a * cosine) - stored(b * sine));
                out[head + i + half] = stored(stored(b * cosine) + stored(a * sine));
            }
        }
    }
    out
}
