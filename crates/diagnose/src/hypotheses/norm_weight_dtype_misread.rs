//! # A norm's weight read as another type
//!
//! Norm weights are stored in float32 and read as bfloat16 or float16, or in one 16-bit format and read as
//! the other.
//!
//! ## How it shows
//!
//! Every second channel of the norm's output is garbage: the low half of a number.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#48324
//!
//! ## Fix
//!
//! Take the type from the file; norm weights often keep float32 when matrices do not.

use super::weight_dtype_misread::{Way, held_in_float, ways};
use crate::edit::Weight;
use crate::{Edit, Scene};

use firstdiff_model::OpKind;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::RmsNorm(_))) else { return vec![] };
    let Some(format) = op.kind.weights().first().and_then(|(name, _)| scene.format(name)) else { return vec![] };
    // Norm weights are often held in float32, however the file stores them.
    let held: [Way; 1] = [("held in float32, read as bfloat16", held_in_float)];
    let held = held.iter().filter(|_| format != "F32");
    let edit = |&(what, how): &Way| {
        let norm = |w: &Weight| w.shape.len() == 1 && w.name.contains("norm");
        Edit::new(format!("norm weights: {what}")).weight(move |w| norm(w).then(|| how(w)).flatten())
    };
    ways(format).iter().chain(held).map(edit).collect()
}
