//! # An output matrix that was never set
//!
//! The output matrix is tied to the embedding or of its own, and the engine's was never set: zeros, or the
//! numbers it was created with.
//!
//! ## How it shows
//!
//! Everything up to `final_norm` is right and logits are all zero, or noise.
//!
//! ## Seen in
//!
//! - sgl-project/sglang#1508
//! - vllm-project/vllm#53020
//!
//! ## Fix
//!
//! Tie the output matrix after loading, and fail when a parameter was not loaded.

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find_tap("logits").is_none() {
        return vec![];
    }
    vec![Edit::new("the output matrix is zero").output(|at, _, value| {
        (at.tap() == "logits").then(|| firstdiff_tensor::Tensor::zeros(value.shape().to_vec()))
    })]
}
