//! # A captured graph replayed with the arguments of its capture
//!
//! A decode step captured as a graph is replayed with a position or a length that was baked in: that of the
//! first decoded token.
//!
//! ## How it shows
//!
//! The prompt and the first decoded token are right. From the second on, tokens are rotated as if at the
//! first one's position, or attention sees no keys after it.
//!
//! ## Seen in
//!
//! - ikawrakow/ik_llama.cpp#2136
//! - nntrainer/nntrainer#4317
//! - paiml/realizar#198 (probably)
//!
//! ## Fix
//!
//! Keep position and length in device memory that the graph reads, and update them before each replay.

use super::masks::seeing;
use super::pos_chunk_offset::shifted;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(captured) = captured(scene) else { return vec![] };
    let position = scene.steps()[captured].positions[0];
    let keys = firstdiff_reference::visible_keys(&scene.steps()[..=captured]).pop().unwrap_or(0);
    let detail = format!("position {position} of the first decoded token is used for later ones");
    let mut edits = shifted(scene, &detail, move |positions, _| {
        if positions.len() == 1 {
            positions.iter_mut().for_each(|p| *p = (*p).min(position));
        }
    });
    edits.extend(seeing(scene, format!("only the {keys} keys of the first decoded token are seen"), move |_, pair| {
        pair.seen() && (pair.rows.len() > 1 || pair.key < keys)
    }));
    edits
}

/// The first decode step, where this one is a later one.
pub(super) fn captured(scene: &Scene) -> Option<usize> {
    let one = |s: usize| scene.steps()[s].positions.len() == 1 && scene.steps()[s].positions[0] > 0;
    let first = (0..scene.step).find(|&s| one(s))?;
    one(scene.step).then_some(first)
}
