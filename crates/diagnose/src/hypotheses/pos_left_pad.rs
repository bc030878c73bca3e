//! # Positions that count the padding
//!
//! Prompts of a batch are padded on the left to one length, and positions are counted from the padding
//! instead of from the first token.
//!
//! ## How it shows
//!
//! Rotations of the shorter prompts are off by the number of padding tokens. Attention hides it, for it
//! sees differences of positions only; absolute positions do not.
//!
//! ## Seen in
//!
//! - unslothai/unsloth#3699
//! - ndif-team/nnsight#673
//! - huggingface/transformers#48161
//!
//! ## Fix
//!
//! Count positions along the attention mask: `cumsum(mask) - 1`.

use firstdiff_model::OpKind;

use super::tools::{Set, ropes};
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let first = &scene.input().sequence;
    // With one row each it would have been wrong in the prompts before.
    let repeated = first.windows(2).any(|pair| pair[0] == pair[1]);
    if !repeated || first.iter().all(|s| Some(s) == first.first()) {
        return vec![];
    }
    let edit = |(which, set): Set| {
        Edit::new(format!("positions count the padding to the left{which}")).positions(move |at, positions| {
            if matches!(at.op().kind, OpKind::Rope(_)) && set(at.tap()) {
                for (p, s) in positions.iter_mut().zip(&at.rows().sequence) {
                    *p += padding(at, *s);
                }
            }
        })
    };
    ropes(scene).into_iter().map(edit).collect()
}

/// How many tokens a sequence's prompt is padded with: what the longest first one has more.
pub(super) fn padding(at: &At, sequence: i64) -> u32 {
    let length = |wanted: i64| {
        let step = at.site.steps.iter().find(|s| s.sequence.contains(&wanted));
        step.map_or(0, |s| s.sequence.iter().filter(|s| **s == wanted).count())
    };
    let longest = at.rows().sequence.iter().map(|s| length(*s)).max().unwrap_or(0);
    longest.saturating_sub(length(sequence)) as u32
}
