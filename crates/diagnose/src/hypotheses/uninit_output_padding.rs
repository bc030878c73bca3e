//! # Padding rows that nobody wrote
//!
//! Rows are padded to a multiple of the tile, the padding is never written, and something is taken over all
//! rows: the largest value for a scale, or a sum. What memory held before spreads to every row.
//!
//! ## How it shows
//!
//! Everything is NaN in steps whose number of rows is no multiple of the tile, and right in the others. It
//! depends on what ran before.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#37442
//! - vllm-project/vllm#19784
//! - vllm-project/vllm-ascend#17003
//!
//! ## Fix
//!
//! Clear the padding, or leave it out of what is taken over rows; fill buffers with NaN in tests.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let op = &scene.program().ops[scene.op];
    if !matches!(op.kind, OpKind::Linear(_) | OpKind::RmsNorm(_) | OpKind::GatedAct(_)) {
        return vec![];
    }
    // Unless attention lies between: it may be what is not finite, whatever rows the product has.
    if scene.find(|k| matches!(k, OpKind::AttnHeads(_))).is_some() {
        return vec![];
    }
    let rows = |step: usize| scene.steps()[step].token_ids.len();
    match tile(scene, rows) {
        Some(tile) => vec![all_lost(format!("everything is NaN where rows are no multiple of {tile}"), short(op))],
        None => vec![],
    }
}

/// The smallest tile whose multiples are right and nothing else is, where nothing is finite.
pub(super) fn tile(scene: &Scene, extent: impl Fn(usize) -> usize) -> Option<usize> {
    if scene.engine.data().iter().any(|x| x.is_finite()) {
        return None;
    }
    let steps = 0..scene.steps().len();
    (1..=8).map(|power| 1usize << power).find(|tile| {
        let whole = |step: &usize| extent(*step).is_multiple_of(*tile);
        steps.clone().any(|s| whole(&s)) && steps.clone().all(|s| whole(&s) != scene.wrong_steps.contains(&s))
    })
}

/// Nothing finite in a tap.
pub(super) fn all_lost(detail: String, tap: &str) -> Edit {
    let tap = tap.to_string();
    Edit::new(detail).fitted(1).lost(move |at, value| (at.tap() == tap).then(|| vec![true; value.len()]))
}
