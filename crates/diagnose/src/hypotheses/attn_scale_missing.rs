//! # Attention scores not scaled
//!
//! Queries times keys are not divided by the root of the head size.
//!
//! ## How it shows
//!
//! Scores are larger by one factor, the root of the head size. A row that sees a single key is right after
//! the softmax; all others look at one key only.
//!
//! ## Seen in
//!
//! - mlc-ai/mlc-llm#3426
//!
//! ## Fix
//!
//! Multiply scores by `head_dim^-0.5`, on every path.

use super::attn_scale_wrong_dim::with_scales;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    with_scales(scene, |_model| vec![(1.0, "scores are not scaled".into(), 0)])
}
