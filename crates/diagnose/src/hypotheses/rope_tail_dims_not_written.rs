//! # The end of each rotated head not written
//!
//! The kernel stores the first channels of a head and leaves the others as the buffer held them.
//!
//! ## How it shows
//!
//! From some channel on, heads are zero, or hold what another call left there; the channels before it are
//! right.
//!
//! ## Seen in
//!
//! - gittensor-ai-lab/sparkinfer#518
//!
//! ## Fix
//!
//! Store all channels of a head, those that are not rotated too.

use firstdiff_model::OpKind;

use super::tools::{at_rope, ropes};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Rope(_))) else { return vec![] };
    let OpKind::Rope(rope) = &op.kind else { return vec![] };
    let mut lengths = vec![rope.dim / 4, rope.dim / 2, rope.dim * 3 / 4];
    lengths.extend((3..9).map(|p| 1 << p));
    lengths.extend(written(scene, rope.dim));
    lengths.retain(|n| *n > 0 && *n < rope.dim);
    lengths.sort_unstable();
    lengths.dedup();
    let mut edits = Vec::new();
    for (which, set) in ropes(scene) {
        for &n in &lengths {
            let detail = format!("channels from {n} on are left zero in every head{which}");
            edits.push(Edit::new(detail).output(move |at, _, value| {
                let OpKind::Rope(rope) = &at.op().kind else { return None };
                at_rope(at, set).then_some(())?;
                let mut out = value.clone();
                out.data_mut().chunks_mut(rope.dim).for_each(|head| head[n..].fill(0.0));
                Some(out)
            }));
        }
    }
    edits
}

/// How many channels of a head the engine's own value has, where the rest is zero.
fn written(scene: &Scene, dim: usize) -> Option<usize> {
    scene.alone()?;
    let heads = || scene.engine.data().chunks(dim);
    (0..dim).rev().find(|&c| heads().any(|h| h.get(c).is_some_and(|x| *x != 0.0))).map(|c| c + 1)
}
