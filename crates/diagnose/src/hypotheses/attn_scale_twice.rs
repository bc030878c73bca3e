//! # Attention scores scaled twice
//!
//! Queries are scaled beforehand and the attention function scales again.
//!
//! ## How it shows
//!
//! Scores are smaller by one factor, the root of the head size; probabilities are nearly even.
//!
//! ## Seen in
//!
//! - huggingface/transformers#38290
//!
//! ## Fix
//!
//! Pass a scale of 1 to an attention function that gets scaled queries.

use super::attn_scale_wrong_dim::with_scales;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    with_scales(scene, |model| vec![(model * model, "scores are scaled twice".into(), 0)])
}
