//! # Another epsilon in a norm
//!
//! The number added to the mean square before the root is not the model's: 1e-5 for 1e-6, 1e-12, or none.
//! Named with the value that the rows show.
//!
//! ## How it shows
//!
//! Each row is off by a factor of its own, and rows of small values most, so the first layers stand out.
//! Cosine is 1.
//!
//! ## Seen in
//!
//! - apache/tvm#15856
//! - huggingface/candle#271
//! - Lightning-AI/lit-llama#339
//! - intel/ipex-llm#9529
//!
//! ## Fix
//!
//! Read `rms_norm_eps` from the configuration, for every norm.

use firstdiff_model::{Op, OpKind};

use super::tools::short_number;
use crate::{Edit, Scene};

const KNOWN: [f64; 6] = [1e-5, 1e-6, 1e-8, 1e-12, 0.0, 1e-7];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| eps_of(k).is_some()) else { return vec![] };
    let Some((model, dim)) = eps_of(&op.kind) else { return vec![] };
    let edit = |eps: f64, parameters| {
        let number = |x: f64| if x == 0.0 { "0".to_string() } else { short_number(x) };
        Edit::new(format!("epsilon {} where the model has {}", number(eps), number(model))).fitted(parameters).ops(
            move |op: &mut Op| {
                match &mut op.kind {
                    OpKind::RmsNorm(norm) => norm.eps = eps,
                    OpKind::WideNorm(norm) => norm.eps = eps,
                    _ => {}
                }
            },
        )
    };
    // The epsilon of something else in the same model.
    let other = scene.number("hc_eps");
    let mut edits: Vec<Edit> =
        KNOWN.iter().chain(&other).filter(|eps| (**eps - model).abs() > 1e-3 * model).map(|&eps| edit(eps, 0)).collect();
    if let Some(eps) = fitted(scene, dim, model) {
        edits.push(edit(eps, 1));
    }
    edits
}

/// The epsilon of a norm, and the channels normalised together.
fn eps_of(kind: &OpKind) -> Option<(f64, usize)> {
    match kind {
        OpKind::RmsNorm(norm) => Some((norm.eps, norm.dim)),
        OpKind::WideNorm(norm) => Some((norm.eps, norm.dim)),
        _ => None,
    }
}

/// The epsilon that the row with the smallest values shows, where the norm stands alone.
fn fitted(scene: &Scene, dim: usize, model: f64) -> Option<f64> {
    let op = scene.alone()?;
    let x = scene.value(op.inputs.first()?.0)?;
    let exact = scene.exact(scene.op)?;
    let rows = x.data().chunks(dim).zip(exact.data().chunks(dim)).zip(scene.engine.data().chunks(dim));
    let row = |((x, exact), engine): ((&[f64], &[f64]), &[f64])| {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
        let dot: f64 = exact.iter().zip(engine).map(|(a, b)| a * b).sum();
        let ratio = dot / exact.iter().map(|a| a * a).sum::<f64>();
        (mean, (mean + model) / (ratio * ratio) - mean)
    };
    let (_, eps) = rows.map(row).filter(|r| r.1.is_finite()).min_by(|a, b| a.0.total_cmp(&b.0))?;
    (eps > 0.0).then_some(eps)
}
