//! # Positions restart with each chunk
//!
//! A prompt that is fed in pieces: positions of the later pieces count from 0 again.
//!
//! ## How it shows
//!
//! The first chunk is right; later ones are rotated too little, by the same number of positions for all of
//! a chunk.
//!
//! ## Seen in
//!
//! - huggingface/transformers#43082
//! - nntrainer/nntrainer#3808
//!
//! ## Fix
//!
//! Add the number of tokens already cached to the positions of a chunk.

use firstdiff_model::OpKind;

use super::tools::ropes;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let positions = &scene.input().positions;
    if positions.len() < 2 || positions[0] == 0 {
        return vec![];
    }
    let detail = format!("positions restart at 0 where this call starts at {}", positions[0]);
    shifted(scene, &detail, |positions, first| {
        if positions.len() > 1 {
            positions.iter_mut().for_each(|p| *p = p.saturating_sub(first));
        }
    })
}

/// Rotations at other positions; `f` gets the rows' positions and the first of them.
pub(super) fn shifted(scene: &Scene, detail: &str, f: impl Fn(&mut [u32], u32) + Send + Sync + Copy + 'static) -> Vec<Edit> {
    let edit = |(which, set): (&str, fn(&str) -> bool)| {
        Edit::new(format!("{detail}{which}")).positions(move |at, positions| {
            let first = positions.first().copied().unwrap_or(0);
            if matches!(at.op().kind, OpKind::Rope(_)) && set(at.tap()) {
                f(positions, first);
            }
        })
    };
    ropes(scene).into_iter().map(edit).collect()
}
