//! # Head size derived from the hidden size
//!
//! The head size is taken to be `hidden / heads`, and the configuration has another one, `head_dim`. Shapes
//! then fit by chance or by padding.
//!
//! ## How it shows
//!
//! Scores are off by one factor, the root of the two sizes' ratio; where the rotation uses the wrong size
//! too, the channels beyond it are not turned.
//!
//! ## Seen in
//!
//! - InternLM/lmdeploy#2761
//!
//! ## Fix
//!
//! Read `head_dim`, and derive it only where it is absent.

use firstdiff_model::{OpKind, RopeFrequencies};

use super::attn_scale_wrong_dim::with_scales;
use super::tools::{at_rope, gather, plain, ropes};
use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let (Some(hidden), Some(heads)) = (scene.number("hidden_size"), scene.number("num_attention_heads")) else {
        return vec![];
    };
    let size = hidden / heads;
    let dim = scene.program().ops.iter().find_map(|op| match &op.kind {
        OpKind::Rope(rope) => Some(rope.dim),
        _ => None,
    });
    let Some(dim) = dim.filter(|d| *d as f64 != size && size.fract() == 0.0 && size >= 2.0) else { return vec![] };
    let mut edits = with_scales(scene, |_| vec![(size.powf(-0.5), format!("scale from a head size of {size} where it is {dim}"), 0)]);
    let Some(theta) = super::rope_theta_wrong::model_theta(scene).filter(|_| size < dim as f64) else { return edits };
    let rotated = size as usize;
    for (which, set) in ropes(scene) {
        // Channels that are not turned get a frequency at which nothing turns.
        let mut frequencies = plain(theta, rotated);
        frequencies.resize(dim / 2, 1e-300);
        let detail = format!(
            "rotation and scale from a head size of {rotated} where it is {dim}; the rest is untouched{which}"
        );
        edits.push(
            Edit::new(detail)
                .ops(move |op| {
                    let here = set(short(op));
                    match &mut op.kind {
                        OpKind::AttnScores(s) => s.scale = size.powf(-0.5),
                        OpKind::Rope(rope) if here => {
                            rope.frequencies = RopeFrequencies::Fixed(frequencies.clone());
                        }
                        _ => {}
                    }
                })
                .input(move |at, _, x| at_rope(at, set).then(|| gather(x, dim, |i| spread(i, dim, rotated))))
                .output(move |at, _, y| {
                    at_rope(at, set).then(|| gather(y, dim, |i| (0..dim).find(|&j| spread(j, dim, rotated) == i).unwrap_or(i)))
                }),
        );
    }
    edits
}

/// The channel that lies at `i` when the pairs of the first `n` channels are taken apart into halves of all.
fn spread(i: usize, dim: usize, n: usize) -> usize {
    let (half, inner) = (dim / 2, n / 2);
    match (i < half, i % half < inner) {
        (true, true) => i,
        (false, true) => i - half + inner,
        (true, false) => i - inner + n,
        (false, false) => i - half - inner + n + (half - inner),
    }
}
