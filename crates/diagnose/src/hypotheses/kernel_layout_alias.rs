//! # A matrix or tensor read in its transposed layout
//!
//! The bytes are right and their order is misread: a weight stored `[out, in]` is read as `[in, out]`, or
//! an activation `[T, H, D]` as `[H, T, D]`.
//!
//! ## How it shows
//!
//! The operation's output has nothing to do with the right one, yet its size is about right. Square
//! matrices hide it from every shape check.
//!
//! ## Seen in
//!
//! - guqiong96/Lvllm#68
//!
//! ## Fix
//!
//! Say whether a matrix is transposed where it is handed over (GEMM libraries are column-major), and test
//! with matrices that are not square.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for &index in &scene.ops {
        let op = &scene.program().ops[index];
        let tap = short(op).to_string();
        match &op.kind {
            OpKind::Linear(_) => {
                let weights: Vec<String> = scene.program().ops.iter().filter(|o| short(o) == tap).filter_map(weight).collect();
                edits.push(Edit::new(format!("the weight of {tap} is read transposed")).weight(move |w| {
                    let &[rows, cols] = w.shape else { return None };
                    weights.iter().any(|n| n == w.name).then_some(())?;
                    let values = w.values()?;
                    // Element (r, c) of the right matrix lies where the transposed one has it.
                    Some((0..rows * cols).map(|i| values[i % cols * rows + i / cols]).collect())
                }));
            }
            OpKind::AttnHeads(_) => {
                let name = tap.clone();
                edits.push(Edit::new(format!("{tap} is written [H, T, D] and read [T, H, D]")).output(move |at, _, value| {
                    (at.tap() == name).then_some(())?;
                    let turned = value.permute(&[1, 0, 2]);
                    Tensor::new(value.shape().to_vec(), turned.into_data()).ok()
                }));
            }
            _ => {}
        }
    }
    edits
}

fn weight(op: &firstdiff_model::Op) -> Option<String> {
    match &op.kind {
        OpKind::Linear(linear) => Some(linear.weight.clone()),
        _ => None,
    }
}
