//! # Rotation from a table of low precision
//!
//! Frequencies, positions, or cosines and sines are held in bfloat16 or half precision before they are
//! used.
//!
//! ## How it shows
//!
//! With frequencies the angle's error grows with the position; rounded positions repeat from 256 on (2048
//! in half precision); rounded cosines are wrong by the same small part everywhere. Cosine similarity stays
//! at 0.9996 in short texts.
//!
//! ## Seen in
//!
//! - KellerJordan/modded-nanogpt#39
//! - huggingface/transformers#29285
//! - sgl-project/sglang-jax#1473
//! - huggingface/candle#3520
//!
//! ## Fix
//!
//! Compute frequencies, positions, angles and tables in float32, whatever the model's format.

use firstdiff_model::{OpKind, RopeFrequencies};
use firstdiff_tensor::{Float, Tensor};

use super::tools::{at_rope, ropes};
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let last = scene.input().positions.iter().copied().max().unwrap_or(0);
    let mut edits = Vec::new();
    for (which, set) in ropes(scene) {
        for (format, name) in [(Float::BF16, "bfloat16"), (Float::F16, "half precision")] {
            edits.push(Edit::new(format!("frequencies in {name}{which}")).ops(move |op| {
                let here = set(crate::scene::short(op));
                if let OpKind::Rope(rope) = &mut op.kind
                    && here
                    && let RopeFrequencies::Fixed(f) = &mut rope.frequencies
                {
                    f.iter_mut().for_each(|f| *f = format.round(*f));
                }
            }));
            if u64::from(last) > 1u64 << format.significand_bits() {
                edits.push(Edit::new(format!("positions in {name}{which}")).positions(move |at, positions| {
                    if at_rope(at, set) {
                        positions.iter_mut().for_each(|p| *p = format.round(f64::from(*p)) as u32);
                    }
                }));
                edits.push(Edit::new(format!("angles in {name}{which}")).output(move |at, inputs, _| {
                    at_rope(at, set).then(|| turned(at, inputs.first()?, |a| format.round(a), |t| t)).flatten()
                }));
            }
            edits.push(Edit::new(format!("cosines and sines in {name}{which}")).output(move |at, inputs, _| {
                at_rope(at, set).then(|| turned(at, inputs.first()?, |a| a, |t| format.round(t))).flatten()
            }));
        }
    }
    edits
}

/// Rotated with angles, and then cosines and sines, changed.
fn turned(at: &At, x: &Tensor<f64>, angle: impl Fn(f64) -> f64, table: impl Fn(f64) -> f64) -> Option<Tensor<f64>> {
    let OpKind::Rope(rope) = &at.op().kind else { return None };
    let (dim, half) = (rope.dim, rope.dim / 2);
    let positions = &at.rows().positions;
    let positions = &positions[positions.len().checked_sub(x.rows())?..];
    let frequencies = rope.frequencies.at(positions.iter().copied().max().unwrap_or(0));
    let mut out = x.clone();
    let width = x.row_len();
    for (row, out) in out.data_mut().chunks_mut(width).enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            // The table is made in float32.
            let a = angle(f64::from((f64::from(positions[row]) * f) as f32));
            let (s, c) = (table((a.sin() * rope.amplitude) as f32 as f64), table((a.cos() * rope.amplitude) as f32 as f64));
            for (out, x) in out.chunks_mut(dim).zip(x.row(row).chunks(dim)) {
                out[i] = x[i] * c - x[i + half] * s;
                out[i + half] = x[i + half] * c + x[i] * s;
            }
        }
    }
    out.reshape(firstdiff_model::extents(&at.op().axes, x.rows(), 0)).ok()
}
