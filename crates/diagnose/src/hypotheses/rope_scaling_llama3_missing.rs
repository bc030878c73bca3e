//! # Frequency scaling not applied
//!
//! The configuration has a `rope_scaling` (Llama 3's three bands, linear, or yarn), and the engine rotates
//! by the plain frequencies.
//!
//! ## How it shows
//!
//! Slow pairs alone are wrong. Below some hundred tokens the error is small enough for a cosine of 0.999;
//! at some thousand nothing is right.
//!
//! ## Seen in
//!
//! - felafax/felafax#59
//! - lablup/mlxcel#1355
//! - jmaczan/tiny-vllm#1
//!
//! ## Fix
//!
//! Compute the frequencies with the model's `rope_scaling`, or read them from the file (`rope_freqs` in
//! GGUF).

use firstdiff_model::OpKind;

use super::tools::{plain, rotation, with_frequencies};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((index, frequencies)) = rotation(scene) else { return vec![] };
    let OpKind::Rope(rope) = &scene.program().ops[index].kind else { return vec![] };
    let Some(theta) = super::rope_theta_wrong::model_theta(scene) else { return vec![] };
    let unscaled = plain(theta, rope.dim);
    let same = unscaled.iter().zip(&frequencies).all(|(a, b)| (a - b).abs() <= 1e-9 * a);
    if same {
        return vec![];
    }
    with_frequencies(scene, "plain frequencies where the model scales them", 0, &unscaled)
}
