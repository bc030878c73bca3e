//! # Part of a matrix product's sum left out
//!
//! The sum over input channels is split over threads or tiles, and some partial sums never reach the
//! result. Named with the channels that are missing, as the engine's values show them.
//!
//! ## How it shows
//!
//! The product equals that of an input with these channels zeroed. Short sums are right.
//!
//! ## Seen in
//!
//! - ericcurtin/vllm-vulkan#57
//!
//! ## Fix
//!
//! Reduce over all subgroups, and test with inner sizes beyond one subgroup and beside multiples of the
//! tile.

use super::fits::{left_out, runs, summed, threshold};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if threshold(scene).is_some() {
        return vec![]; // a kernel of its own for many rows
    }
    let Some(kept) = summed(scene) else { return vec![] };
    let detail = format!("the sum leaves out input channels {}", runs(&kept));
    vec![left_out(scene, kept, &detail).fitted(1)]
}
