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

use super::weight_dtype_misread::ways;
use crate::{Edit, Scene};

use firstdiff_model::OpKind;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::RmsNorm(_))) else { return vec![] };
    let Some(format) = op.kind.weights().first().and_then(|(name, _)| scene.format(name)) else { return vec![] };
    let edit = |&(what, how): &super::weight_dtype_misread::Way| {
        Edit::new(format!("norm weights: {what}")).weight(move |w| (w.shape.len() == 1 && w.name.contains("norm")).then(|| how(w)).flatten())
    };
    ways(format).iter().map(edit).collect()
}
