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

use std::collections::HashMap;

use firstdiff_model::{OpKind, Program, RopeFrequencies, Value};

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
        let mut norms = HashMap::new();
        for (index, _) in pairs(scene.program()) {
            if let OpKind::RmsNorm(norm) = &scene.program().ops[index].kind {
                norms.insert(index, norm.clone());
            }
        }
        edits.push(
            Edit::new("heads are normalised after the rotation")
                .program(|program| {
                    for (norm, rope) in pairs(program) {
                        let kind = program.ops[rope].kind.clone();
                        if let OpKind::Rope(rope) = &mut program.ops[rope].kind {
                            rope.frequencies = RopeFrequencies::Fixed(vec![0.0; rope.dim / 2]);
                            rope.amplitude = 1.0;
                        }
                        program.ops[norm].kind = kind;
                    }
                })
                .output(move |at, _, value| {
                    let norm = norms.get(&at.site.index)?;
                    let weight = at.weight(&norm.weight)?;
                    let mut out = value.clone();
                    for head in out.data_mut().chunks_mut(norm.dim) {
                        let mean = head.iter().map(|x| x * x).sum::<f64>() / norm.dim as f64;
                        let scale = (mean + norm.eps).powf(-0.5);
                        head.iter_mut().zip(weight.iter()).for_each(|(x, w)| *x *= scale * f64::from(*w));
                    }
                    Some(out)
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
