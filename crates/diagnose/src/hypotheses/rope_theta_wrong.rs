//! # RoPE with another base
//!
//! The base of the rotary frequencies, `rope_theta`, is another number than the model's: a default of
//! 10000, or that of another model. Named with the base that the engine's angles show.
//!
//! ## How it shows
//!
//! Position 0 agrees, and so does pair 0 everywhere, whose frequency is 1 with any base. The other pairs
//! turn too fast or too slowly, more so with position. Short texts are good, long ones are not.
//!
//! ## Seen in
//!
//! - lyogavin/airllm#369
//! - karpathy/llama2.c#356
//! - intel/ipex-llm#10787
//!
//! ## Fix
//!
//! Read `rope_theta` from the configuration (`rope.freq_base` in GGUF); newer configurations keep it in
//! `rope_parameters`.

use firstdiff_model::{OpKind, RopeFrequencies};

use super::tools::{angles, plain, rotation, short_number, with_frequencies};
use crate::{Edit, Scene};

/// Bases in use.
const KNOWN: [f64; 12] =
    [1e4, 1e5, 1.5e5, 1e6, 1.5e6, 5e5, 5e6, 1e7, 2.5e5, 8e4, 4e4, 1.6e5];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((index, _)) = rotation(scene) else { return vec![] };
    let OpKind::Rope(rope) = &scene.program().ops[index].kind else { return vec![] };
    let Some(model) = model_theta(scene) else { return vec![] };
    let edit = |theta: f64, parameters| {
        let detail = format!("theta {} where the model has {}", short_number(theta), short_number(model));
        with_frequencies(scene, &detail, parameters, &plain(theta, rope.dim))
    };
    let known = KNOWN.iter().filter(|t| **t != model);
    let mut edits: Vec<Edit> = known.flat_map(|&theta| edit(theta, 0)).collect();
    if let RopeFrequencies::Dynamic { .. } = rope.frequencies {
        let detail = format!("theta {} at every length, where the model raises it", short_number(model));
        edits.extend(with_frequencies(scene, &detail, 0, &plain(model, rope.dim)));
    }
    if let Some(theta) = fitted(scene, rope.dim).filter(|t| !KNOWN.contains(t) && (t / model - 1.0).abs() > 1e-6) {
        edits.extend(edit(theta, 1));
    }
    edits
}

/// The base of the model's plain frequencies: the configuration's word, else what families take without it.
pub(super) fn model_theta(scene: &Scene) -> Option<f64> {
    let config = scene.model.checkpoint.config();
    let nested = |key: &str| config.get(key).and_then(|p| p.get("rope_theta")).and_then(|t| t.as_f64());
    nested("rope_scaling").or_else(|| nested("rope_parameters")).or_else(|| scene.number("rope_theta")).or(Some(1e4))
}

/// Rows whose angles are looked at.
const ROWS: usize = 32;

/// The base that the angles show. A pair's angle is known up to whole turns: slow pairs of early rows first,
/// whose turns are none, then faster ones to narrow it down.
fn fitted(scene: &Scene, dim: usize) -> Option<f64> {
    let angles = angles(scene)?;
    let positions = &scene.input().positions;
    // A few rows tell; slow pairs of early ones are among them.
    let each = angles.len().div_ceil(ROWS).max(1);
    let error = |log: f64| -> f64 {
        let theta = log.exp();
        let mut sum = 0.0;
        for (row, p) in angles.iter().zip(positions).step_by(each) {
            for (i, a) in row.iter().enumerate() {
                let f = theta.powf(-2.0 * i as f64 / dim as f64);
                sum += 1.0 - (f64::from(*p) * f - a).cos();
            }
        }
        sum
    };
    // A grid fine enough for the fastest pair that depends on the base, then golden sections.
    let last = f64::from(positions.iter().copied().max()?.max(1));
    let step = (0.5 / last).clamp(1e-3, 0.05);
    let (low, high) = (10f64.ln(), 1e9f64.ln());
    let count = ((high - low) / step) as usize;
    scene.may([count + 120, angles.len().min(ROWS), dim / 2, 400].iter().map(|&n| n as u64).product()).then_some(())?;
    let best = (0..=count).map(|i| low + i as f64 * step).min_by(|a, b| error(*a).total_cmp(&error(*b)))?;
    let (mut a, mut b) = (best - step, best + step);
    for _ in 0..60 {
        let (c, d) = (b - (b - a) * 0.618_034, a + (b - a) * 0.618_034);
        if error(c) < error(d) { b = d } else { a = c }
    }
    let theta = ((a + b) / 2.0).exp();
    // Bases are round numbers.
    let digits = 10f64.powf(theta.log10().floor() - 2.0);
    let round = (theta / digits).round() * digits;
    Some(if (round / theta - 1.0).abs() < 2e-3 { round } else { theta })
}
