//! # An output matrix that was never set
//!
//! The output matrix is tied to the embedding or of its own, and the engine's was never set: zeros, or the
//! numbers it was created with.
//!
//! ## How it shows
//!
//! Everything up to `final_norm` is right and logits are all zero, or noise. Noise is only told from other wrong
//! matrices in a trace with more tokens than the hidden size.
//!
//! ## Seen in
//!
//! - sgl-project/sglang#1508
//! - vllm-project/vllm#53020
//!
//! ## Fix
//!
//! Tie the output matrix after loading, and fail when a parameter was not loaded.

use super::fits::unrelated;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find_tap("logits").is_none() {
        return vec![];
    }
    let zero = Edit::new("the output matrix is zero").output(|at, _, value| {
        (at.tap() == "logits").then(|| firstdiff_tensor::Tensor::zeros(value.shape().to_vec()))
    });
    let here = scene.program().ops[scene.op].tap == "logits";
    std::iter::once(zero).chain(here.then(|| unrelated(scene)).flatten()).collect()
}
