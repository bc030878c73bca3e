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

use super::tools::{at_rope, ropes, table};
use crate::{Edit, Scene};

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
            }
            let detail = format!("cosines and sines in {name}{which}");
            // Each result is the sum of two products.
            edits.push(Edit::new(detail).sums(2).output(move |at, inputs, value| {
                let OpKind::Rope(rope) = &at.op().kind else { return None };
                at_rope(at, set).then_some(())?;
                let x = inputs.first()?;
                let mut right = table(x, value, rope.dim);
                let engine = at.recorded(at.site.index, at.site.step).filter(|e| e.shape() == value.shape());
                let engine = engine.map(|e| table(x, &e, rope.dim));
                for (row, pairs) in right.iter_mut().enumerate() {
                    for (pair, (c, s)) in pairs.iter_mut().enumerate() {
                        let own = engine.as_ref().map(|e| e[row][pair]);
                        *c = rounded(format, *c, own.map(|own| own.0));
                        *s = rounded(format, *s, own.map(|own| own.1));
                    }
                }
                Some(turned(x, value, rope.dim, right))
            }));
        }
    }
    edits
}

/// A number in a format. Where it lies so near the middle that its own rounding decides, the engine's may be the
/// one beyond: half an ulp away, and a hundredth more for the angle in float32, which at position 100 is off by up to
/// 6e-6; a hundredth of an ulp is 4e-5 for bfloat16 near 1, 5e-6 for float16. Angles further off may cost the name.
fn rounded(format: Float, x: f64, engine: Option<f64>) -> f64 {
    let ulp = format.ulp(x);
    let own = engine.map(|e| format.round(e)).filter(|own| (own - x).abs() <= 0.51 * ulp);
    own.unwrap_or_else(|| format.round(x))
}

/// Rotated by a table of cosines and sines.
fn turned(x: &Tensor<f64>, value: &Tensor<f64>, dim: usize, table: Vec<Vec<(f64, f64)>>) -> Tensor<f64> {
    let (mut out, half) = (value.clone(), dim / 2);
    let width = x.row_len();
    for ((row, out), table) in out.data_mut().chunks_mut(width).enumerate().zip(&table) {
        for (out, x) in out.chunks_mut(dim).zip(x.row(row).chunks(dim)) {
            for (i, (c, s)) in table.iter().enumerate() {
                out[i] = x[i] * c - x[i + half] * s;
                out[i + half] = x[i + half] * c + x[i] * s;
            }
        }
    }
    out
}
