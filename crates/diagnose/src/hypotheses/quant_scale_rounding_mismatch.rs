//! # Scales rounded after the codes were made
//!
//! Codes are made with exact scales, and the scales are then rounded to powers of two; or the engine rounds
//! them when it loads them.
//!
//! ## How it shows
//!
//! Each block is off by a factor between one half and two.
//!
//! ## Seen in
//!
//! - huggingface/transformers#46763
//! - huggingface/transformers#47030
//! - sgl-project/sglang#39193
//!
//! ## Fix
//!
//! Round scales first, then make the codes with the rounded ones.

use super::fits::of_matrices;
use super::quant::Blocks;
use crate::{Edit, Scene};

type Rounding = fn(f32) -> f32;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none() {
        return vec![];
    }
    let ways: [(&str, Rounding); 3] = [
        ("scales are rounded up to powers of two", f32::ceil),
        ("scales are rounded down to powers of two", f32::floor),
        ("scales are rounded to the nearest powers of two", f32::round),
    ];
    ways.into_iter()
        .flat_map(|(what, way)| {
            of_matrices(scene, what, move |w| {
                let blocks = Blocks::of_weight(w)?;
                let power = |s: f32| if s == 0.0 { s } else { s.signum() * way(s.abs().log2()).exp2() };
                Some(w.loaded(blocks.edited(w, |block| blocks.scaled(block, power))?))
            })
        })
        .collect()
}
