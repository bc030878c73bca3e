//! # A windowed cache's ring read in the wrong order
//!
//! Layers with a window keep their keys in a ring. After it has wrapped, rows are read in stored order, or
//! those before the wrap are lost.
//!
//! ## How it shows
//!
//! Rows of the cache are other rows of the same window, from the step on in which the ring wraps.
//!
//! ## Seen in
//!
//! - ollama/ollama#14912
//! - ollama/ollama#15591
//! - ml-explore/mlx-swift-lm#584
//! - Blaizzy/mlx-vlm#1715
//!
//! ## Fix
//!
//! Read the ring from its oldest row, or give each row its position.

use firstdiff_model::{OpKind, Value};

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    // The mask that follows this cache says whether its layer has a window.
    let ops = &scene.program().ops;
    let windowed = ops.iter().enumerate().skip(scene.op).take(6).any(|(_, op)| {
        matches!(&op.kind, OpKind::AttnProbs(p) if p.window.is_some()) && op.inputs.first() < Some(&Value(scene.op + 6))
    });
    if !windowed {
        return vec![];
    }
    let mut edits = super::kv_slot_mapping::moved(scene);
    for edit in &mut edits {
        edit.detail = format!("the ring is read in stored order: {}", edit.detail);
    }
    edits
}
