//! # A factor on attention's output lost or added
//!
//! The model multiplies values or attention's output by a constant, and the engine does not, or the
//! reverse.
//!
//! ## How it shows
//!
//! Attention's output is right up to one factor, the same everywhere. A cosine sees nothing.
//!
//! ## Seen in
//!
//! - NVIDIA-NeMo/Megatron-Bridge#4155
//!
//! ## Fix
//!
//! Apply the model's factor once, where its code does.

use firstdiff_model::OpKind;

use super::tools::{common_factor, short_number};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::AttnHeads(_))).is_none() {
        return vec![];
    }
    let Some(factor) = common_factor(scene) else { return vec![] };
    vec![Edit::new(format!("attention's output is multiplied by {}", short_number(factor))).fitted(1).output(
        move |at, _, value| {
            matches!(at.op().kind, OpKind::AttnHeads(_)).then_some(())?;
            let mut out = value.clone();
            out.data_mut().iter_mut().for_each(|x| *x *= factor);
            Some(out)
        },
    )]
}
