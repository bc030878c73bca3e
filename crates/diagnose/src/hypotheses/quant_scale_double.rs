//! # Scales applied twice
//!
//! The scale, or a constant that it contains already (1/127, 1/448), is applied a second time.
//!
//! ## How it shows
//!
//! All products are too small by one factor, or each block by its own scale.
//!
//! ## Seen in
//!
//! - Tencent/AngelSlim#87
//! - kekzl/imp#808
//!
//! ## Fix
//!
//! Decide in one place whether a scale contains the format's largest code.

use firstdiff_reference::Misreading;

use super::fits::of_matrices;
use super::quant::Blocks;
use super::scaled;
use crate::{Edit, Scene};

/// The largest codes of the formats that engines have.
const CODES: [f32; 7] = [127.0, 448.0, 128.0, 7.0, 8.0, 15.0, 240.0];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none() {
        return scaled::edits(scene, scaled::ALL, "scales are applied twice", Misreading::ScaleTwice);
    }
    let mut edits = of_matrices(scene, "scales are applied twice", move |w| {
        let blocks = Blocks::of_weight(w)?;
        let (values, steps) = (w.decoded(|_| {})?, blocks.steps(w)?);
        Some(values.iter().zip(&steps).map(|(w, s)| w * s).collect())
    });
    for code in CODES {
        for (what, factor) in [(format!("1/{code}"), 1.0 / code), (code.to_string(), code)] {
            let detail = format!("scales contain a factor {what} twice");
            edits.extend(of_matrices(scene, &detail, move |w| {
                Blocks::of_weight(w)?;
                Some(w.values()?.iter().map(|w| w * factor).collect())
            }));
        }
    }
    edits
}
