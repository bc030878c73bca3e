//! # Codes used without their scales
//!
//! The scales were not found under the name that the loader looks for, and count as one.
//!
//! ## How it shows
//!
//! Weights are integers, products too large by orders of magnitude. With one scale for all it is a common
//! factor.
//!
//! ## Seen in
//!
//! - wuwangzhang1216/abliterix#93
//!
//! ## Fix
//!
//! Fail when a quantised weight has no scale.

use firstdiff_reference::Misreading;

use super::fits::of_matrices;
use super::quant::Blocks;
use super::scaled;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none() {
        let what = "codes are used without their scales";
        return scaled::edits(scene, scaled::ALL, what, Misreading::ScaleMissing);
    }
    of_matrices(scene, "codes are used without their scales", move |w| {
        let blocks = Blocks::of_weight(w)?;
        Some(w.loaded(blocks.edited(w, |block| blocks.scaled(block, |_| 1.0))?))
    })
}
