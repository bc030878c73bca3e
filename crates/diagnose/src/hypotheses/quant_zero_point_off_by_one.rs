//! # Zero points off by one
//!
//! Codes are stored with a zero point, and the engine subtracts one more or one less: two versions of a
//! format differ in that, or a shift is applied twice.
//!
//! ## How it shows
//!
//! Every product is off by the scale times the sum of the group's inputs.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#38966
//! - mit-han-lab/llm-awq#324
//!
//! ## Fix
//!
//! Test one block of known codes against the format's definition.

use super::fits::of_matrices;
use super::quant::Blocks;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none_or(|b| b.nibbles.is_none()) {
        return vec![];
    }
    [("less", 1.0f32), ("more", -1.0)]
        .into_iter()
        .flat_map(|(what, sign)| {
            of_matrices(scene, &format!("the zero point is one {what}"), move |w| {
                let blocks = Blocks::of_weight(w)?;
                let (values, steps) = (w.decoded(|_| {})?, blocks.steps(w)?);
                Some(values.iter().zip(&steps).map(|(w, s)| w + sign * s).collect())
            })
        })
        .collect()
}
