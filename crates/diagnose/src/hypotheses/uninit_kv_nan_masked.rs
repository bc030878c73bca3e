//! # NaN in cache slots that the mask hides
//!
//! Slots past the end of the cache hold NaN. The mask gives them probability 0, and 0 times NaN is NaN.
//!
//! ## How it shows
//!
//! Attention is NaN where the number of keys is no multiple of the tile, and right in the other steps. It
//! depends on what memory held before.
//!
//! ## Seen in
//!
//! - deepbeepmeep/Wan2GP#1628
//! - vllm-project/vllm#940
//! - pytorch/pytorch#101967
//!
//! ## Fix
//!
//! Clear the cache once, or leave masked keys out of the sum.

use firstdiff_model::OpKind;

use super::uninit_output_padding::{all_lost, tile};
use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::AttnHeads(_))).is_none() {
        return vec![];
    }
    // NaN that came once and stayed, as in a cache, has not to do with the number of keys.
    let again = scene.wrong_steps.iter().min().is_some_and(|first| {
        (first + 1..scene.steps().len()).any(|step| !scene.wrong_steps.contains(&step))
    });
    let keys = |step: usize| scene.steps()[step].positions.iter().max().map_or(0, |p| *p as usize + 1);
    match tile(scene, keys) {
        Some(tile) if again => {
            let tap = short(&scene.program().ops[scene.op]);
            vec![all_lost(format!("everything is NaN where keys are no multiple of {tile}"), tap)]
        }
        _ => vec![],
    }
}
