//! # Attention's output not written
//!
//! The kernel returns before it writes its output, or writes a part: the buffer keeps zeros, or what the
//! layer or the step before left there.
//!
//! ## How it shows
//!
//! Attention's output is exactly zero, or equals that of the layer before or of the last step, in some
//! layers, steps or rows.
//!
//! ## Seen in
//!
//! - vllm-project/vllm-ascend#3571 (probably)
//!
//! ## Fix
//!
//! Check that every path writes all rows, and fill output buffers with NaN while debugging.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::AttnHeads(_))).is_none() {
        return vec![];
    }
    let mut edits = vec![
        Edit::new("attention's output stays zero").output(|at, _, value| {
            matches!(at.op().kind, OpKind::AttnHeads(_)).then(|| firstdiff_tensor::Tensor::zeros(value.shape().to_vec()))
        }),
        Edit::new("attention's output is that of the layer before").program(|program| {
            let heads: Vec<usize> = (0..program.ops.len()).filter(|&i| matches!(program.ops[i].kind, OpKind::AttnHeads(_))).collect();
            for pair in heads.windows(2).rev() {
                let (kind, inputs) = (program.ops[pair[0]].kind.clone(), program.ops[pair[0]].inputs.clone());
                (program.ops[pair[1]].kind, program.ops[pair[1]].inputs) = (kind, inputs);
            }
        }),
    ];
    // Behind the output projection the last step's value is the same product.
    let wrong = short(&scene.program().ops[scene.op]).to_string();
    let linear = matches!(scene.program().ops[scene.op].kind, OpKind::AttnHeads(_) | OpKind::Linear(_));
    if scene.step > 0 && linear {
        edits.push(Edit::new("attention's output is that of the step before").output(move |at, _, value| {
            (at.tap() == wrong).then_some(())?;
            let before = at.recorded(at.site.index, at.site.step.checked_sub(1)?)?;
            (before.shape() == value.shape()).then_some(before)
        }));
    }
    let rows = scene.engine.rows();
    for tile in super::masks::TILES.into_iter().filter(|tile| *tile < rows) {
        let detail = format!("rows of attention's output beyond the last whole tile of {tile} stay zero");
        edits.push(Edit::new(detail).output(move |at, _, value| {
            matches!(at.op().kind, OpKind::AttnHeads(_)).then_some(())?;
            let (mut out, whole) = (value.clone(), value.rows() / tile * tile);
            if whole > 0 {
                let start = whole * value.row_len();
                out.data_mut()[start..].fill(0.0);
            }
            Some(out)
        }));
    }
    edits
}
