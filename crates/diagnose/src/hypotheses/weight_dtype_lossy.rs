//! # Weights converted to a format that cannot hold them
//!
//! Weights are converted to another 16-bit format when they are loaded. float16 has no room for values
//! below 6e-8 and keeps few digits of those below 6e-5.
//!
//! ## How it shows
//!
//! Only products with tiny weights are wrong, and only a little.
//!
//! ## Seen in
//!
//! - google/saxml#28
//! - ggml-org/llama.cpp#2504
//!
//! ## Fix
//!
//! Keep bfloat16 as it is, or convert to float32.

use firstdiff_tensor::Float;

use super::fits::of_matrices;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    [(Float::F16, "float16"), (Float::BF16, "bfloat16")]
        .into_iter()
        .flat_map(|(format, name)| {
            of_matrices(scene, &format!("weights are converted to {name}"), move |w| {
                Some(w.values()?.iter().map(|x| format.round(f64::from(*x)) as f32).collect())
            })
        })
        .collect()
}
