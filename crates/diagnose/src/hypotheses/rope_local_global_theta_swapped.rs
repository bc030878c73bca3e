//! # Another layer type's theta
//!
//! Models with windowed and full layers may rotate them with different bases. Here layers of one type are
//! rotated with a base that is not theirs.
//!
//! ## How it shows
//!
//! Rotations are wrong in layers of one type only: look at how the wrong layers are spaced.
//!
//! ## Seen in
//!
//! - no public case read
//!
//! ## Fix
//!
//! Choose the base by the layer's own type.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let masks = scene.program().ops.iter().filter_map(|op| match &op.kind {
        OpKind::AttnProbs(probs) => Some(probs.window.is_some()),
        _ => None,
    });
    let windowed: Vec<bool> = masks.collect();
    let wrong: Vec<bool> = (0..windowed.len()).map(|l| scene.layers.contains(&l)).collect();
    let opposite = windowed.iter().zip(&wrong).all(|(a, b)| a != b);
    if !windowed.contains(&true) || !windowed.contains(&false) || windowed != wrong && !opposite {
        return vec![];
    }
    let kind = if windowed == wrong { "windowed" } else { "full" };
    let mut edits = super::rope_theta_wrong::propose(scene);
    for edit in &mut edits {
        edit.detail = format!("{kind} layers are rotated with a base of their own: {}", edit.detail);
    }
    edits
}
