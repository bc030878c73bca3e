//! # The factor on top of NVFP4's scales is taken for its reciprocal
//!
//! modelopt stores `amax / (6 * 448)` and multiplies by it, compressed-tensors stores `6 * 448 / amax` and divides. A loader
//! that takes one for the other is off by the square of it; one that drops it, by the factor itself.
//!
//! ## How it shows
//!
//! One constant factor on a whole matrix product, another one for each tensor, often millions or millionths.
//!
//! ## Seen in
//!
//! - vLLM and SGLang read both conventions and convert on loading; a port that shares one loader for both meets this
//!
//! ## Fix
//!
//! Decide by the tensor's name: `weight_scale_2` multiplies, `weight_global_scale` divides.

use firstdiff_reference::Misreading;

use super::scaled;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let ways = [
        ("the factor on top is applied as its reciprocal", Misreading::FactorInverted),
        ("the factor on top is not applied", Misreading::FactorMissing),
    ];
    ways.into_iter().flat_map(|(what, how)| scaled::edits(scene, scaled::WITH_FACTOR, what, how)).collect()
}
