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

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::attn_scale_wrong_dim::with_scales;
use super::tools::{at_rope, plain, ropes};
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
        let frequencies = plain(theta, rotated);
        let detail = format!("rotation and scale from a head size of {rotated} where it is {dim}; the rest is untouched{which}");
        edits.push(
            Edit::new(detail)
                .ops(move |op| {
                    if let OpKind::AttnScores(s) = &mut op.kind {
                        s.scale = size.powf(-0.5);
                    }
                })
                .output(move |at, inputs, value| {
                    at_rope(at, set).then_some(())?;
                    let positions = &at.site.steps[at.site.step].positions;
                    Some(turned(inputs.first()?, value, dim, rotated, &frequencies, positions))
                }),
        );
    }
    edits
}

/// The first `n` channels of every head rotated in halves, the others as they were.
fn turned(x: &Tensor<f64>, shape: &Tensor<f64>, dim: usize, n: usize, f: &[f64], positions: &[u32]) -> Tensor<f64> {
    let mut out = shape.clone();
    let width = shape.row_len();
    for (row, (out, x)) in out.data_mut().chunks_mut(width).zip(x.data().chunks(width)).enumerate() {
        let position = f64::from(positions.get(row).copied().unwrap_or(0));
        for (out, x) in out.chunks_mut(dim).zip(x.chunks(dim)) {
            out.copy_from_slice(x);
            for (i, f) in f.iter().enumerate() {
                let (s, c) = (position * f).sin_cos();
                out[i] = x[i] * c - x[i + n / 2] * s;
                out[i + n / 2] = x[i + n / 2] * c + x[i] * s;
            }
        }
    }
    out
}
