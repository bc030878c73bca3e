//! # Attention scores scaled by another dimension
//!
//! The scale is the root of another size: the hidden size over the number of heads where the head size
//! differs, the hidden size itself, or a number from another model of the family.
//!
//! ## How it shows
//!
//! Scores differ by one factor everywhere. A ratio of 1.07 keeps a cosine of 0.9997.
//!
//! ## Seen in
//!
//! - antonellof/ferrox#40
//! - FareedKhan-dev/train-llm-from-scratch#3
//! - ggml-org/llama.cpp#8444
//!
//! ## Fix
//!
//! Take the scale from the configuration: `head_dim^-0.5`, or `query_pre_attn_scalar^-0.5` where the family
//! has it.

use firstdiff_model::OpKind;

use super::tools::short_number;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let hidden = scene.number("hidden_size");
    let heads = scene.number("num_attention_heads");
    let fitted = fitted(scene);
    with_scales(scene, |model| {
        let named = |size: f64, name: &str| (size.powf(-0.5), format!("scale from {name}, {}", short_number(size)), 0);
        let mut scales = Vec::new();
        if let (Some(hidden), Some(heads)) = (hidden, heads) {
            scales.push(named(hidden, "the hidden size"));
            scales.push(named(heads, "the number of heads"));
        }
        if let Some(factor) = fitted {
            let size = (model * factor).powi(-2);
            let (size, close) = (size.round(), (size / size.round() - 1.0).abs() < 0.01);
            if close && size >= 1.0 {
                let right = short_number(model.powi(-2).round());
                scales.push((size.powf(-0.5), format!("scale {size}^-0.5 where the head size is {right}"), 1));
            }
        }
        // Other hypotheses have these.
        scales.retain(|s| [1.0, model, model * model].iter().all(|m| (s.0 / m - 1.0).abs() > 1e-9));
        scales
    })
}

/// Attention with other scales: from the model's, pairs of scale, words, and how many numbers were fitted.
pub(super) fn with_scales(scene: &Scene, scales: impl Fn(f64) -> Vec<(f64, String, usize)>) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::AttnScores(_))) else { return vec![] };
    let OpKind::AttnScores(scores) = &op.kind else { return vec![] };
    scales(scores.scale)
        .into_iter()
        .map(|(scale, detail, parameters)| {
            Edit::new(detail).fitted(parameters).ops(move |op| {
                if let OpKind::AttnScores(s) = &mut op.kind {
                    s.scale = scale;
                }
            })
        })
        .collect()
}

/// The common factor of scores: read off where they stand alone, searched for behind the softmax.
fn fitted(scene: &Scene) -> Option<f64> {
    let OpKind::AttnScores(_) = scene.program().ops[scene.op].kind else {
        scene.find(|k| matches!(k, OpKind::AttnScores(_)))?;
        return super::tools::fitted(scene, (1.0 / 64.0, 64.0), 48, |factor| {
            Some(Edit::new("").ops(move |op| {
                if let OpKind::AttnScores(s) = &mut op.kind {
                    s.scale *= factor;
                }
            }))
        });
    };
    let exact = scene.exact(scene.op)?;
    let pairs = || {
        let finite = |(x, _): &(&f64, &f64)| x.is_finite() && x.abs() < 1e4;
        scene.engine.data().iter().zip(exact.data()).filter(finite)
    };
    let dot: f64 = pairs().map(|(x, y)| x * y).sum();
    let square: f64 = pairs().map(|(_, y)| y * y).sum();
    (square > 0.0 && dot > 0.0).then(|| dot / square)
}
