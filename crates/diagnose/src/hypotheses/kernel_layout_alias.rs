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
        if !matches!(op.kind, OpKind::AttnHeads(_) | OpKind::Rope(_) | OpKind::AttnScores(_) | OpKind::AttnProbs(_)) {
            continue;
        }
        let name = short(op).to_string();
        let detail = format!("the first two axes of {name} are exchanged between writing and reading");
        edits.push(Edit::new(detail.clone()).output({
            let name = name.clone();
            move |at, _, value| {
                (at.tap() == name).then_some(())?;
                Tensor::new(value.shape().to_vec(), value.permute(&[1, 0, 2]).into_data()).ok()
            }
        }));
        edits.push(Edit::new(detail).output(move |at, _, value| {
            (at.tap() == name).then_some(())?;
            let &[a, b, c] = value.shape() else { return None };
            Some(Tensor::new([b, a, c], value.data().to_vec()).ok()?.permute(&[1, 0, 2]))
        }));
    }
    edits
}
