//! # Rotated channels left in another order
//!
//! The rotation itself is right, or is that of neighbouring channels, but its result stays in the order the
//! kernel worked in: all first channels of the pairs, then all second ones, or the reverse.
//!
//! ## How it shows
//!
//! Position 0, which is not turned at all, differs from its input by a reordering of each head's channels.
//! If queries and keys share it and the pairing is right, scores are unchanged and nothing after them is
//! wrong.
//!
//! ## Seen in
//!
//! - vllm-project/vllm-metal#44
//!
//! ## Fix
//!
//! Undo the reordering before the result is stored, or do it to the cached keys as well.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::tools::{at_rope, gather, ropes};
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (which, set) in ropes(scene) {
        let sorted = move |at: &At, y: &Tensor<f64>| {
            at_rope(at, set).then(|| reordered(at, y, true)).flatten()
        };
        edits.push(
            Edit::new(format!("2i and 2i+1 rotated together, first channels of pairs written before second ones{which}"))
                .input(move |at, _, x| sorted(at, x)),
        );
        for (even_first, what) in
            [(true, "channels left in order 0, 2, 4, …, 1, 3, 5, …"), (false, "pair i written to channels 2i and 2i+1")]
        {
            edits.push(
                Edit::new(format!("rotation right, {what}{which}"))
                    .output(move |at, _, y| at_rope(at, set).then(|| reordered(at, y, even_first)).flatten()),
            );
        }
    }
    edits
}

/// Even channels first, or halves brought side by side.
fn reordered(at: &At, x: &Tensor<f64>, even_first: bool) -> Option<Tensor<f64>> {
    let OpKind::Rope(rope) = &at.op().kind else { return None };
    let half = rope.dim / 2;
    let from = move |i: usize| match even_first {
        true if i < half => 2 * i,
        true => 2 * (i - half) + 1,
        false => i / 2 + i % 2 * half,
    };
    Some(gather(x, rope.dim, from))
}
