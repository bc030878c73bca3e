//! # Rotary frequencies with another size in the exponent
//!
//! Frequencies are `theta^(-2i/n)`, and `n` is not the number of rotated channels: the head size where only
//! a part is rotated, or the hidden size over the heads where the head size is another.
//!
//! ## How it shows
//!
//! Position 0 agrees and pair 0 does everywhere; the others are wrong, more so with position. It is what
//! another theta gives too: `theta^(D/n)`.
//!
//! ## Seen in
//!
//! - pie-project/pie#603
//!
//! ## Fix
//!
//! Use the number of rotated channels in the exponent.

use firstdiff_model::OpKind;

use super::tools::{rotation, with_frequencies};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((index, _)) = rotation(scene) else { return vec![] };
    let OpKind::Rope(rope) = &scene.program().ops[index].kind else { return vec![] };
    let Some(theta) = super::rope_theta_wrong::model_theta(scene) else { return vec![] };
    let (Some(hidden), Some(heads)) = (scene.number("hidden_size"), scene.number("num_attention_heads")) else {
        return vec![];
    };
    let dim = rope.dim as f64;
    let mut sizes = vec![hidden / heads, 2.0 * dim, dim / 2.0, hidden];
    sizes.retain(|n| *n != dim && *n >= 2.0);
    sizes
        .into_iter()
        .flat_map(|n| {
            let frequencies: Vec<f64> = (0..rope.dim / 2).map(|i| theta.powf(-2.0 * i as f64 / n)).collect();
            let detail = format!("theta^(-2i/{n}) where {dim} channels are rotated");
            with_frequencies(scene, &detail, 0, &frequencies)
        })
        .collect()
}
