//! # A norm in another place
//!
//! Models with norms before and after attention and MLP: the ones after are left out.
//!
//! ## How it shows
//!
//! `attn_post_norm` equals `attn_out`, or the residual stream holds branches that were not normalised.
//!
//! ## Seen in
//!
//! - google/flax#4567
//! - ggml-org/llama.cpp#1925
//!
//! ## Fix
//!
//! Place norms as the model's block does: on the branch, before it is added.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

const AFTER: [&str; 2] = ["attn_post_norm", "mlp_post_norm"];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let here: Vec<&str> = AFTER.into_iter().filter(|tap| scene.find_tap(tap).is_some()).collect();
    let without = |taps: Vec<&'static str>, detail: String| {
        Edit::new(detail).output(move |at, inputs, _| {
            let left_out = taps.contains(&at.tap()) && matches!(at.op().kind, OpKind::RmsNorm(_));
            left_out.then(|| inputs.first().map(|x| (*x).clone()))?
        })
    };
    if here.is_empty() {
        return vec![];
    }
    let mut edits = vec![without(AFTER.into(), "the norms after attention and MLP are left out".into())];
    edits.extend(AFTER.into_iter().filter(|t| here.contains(t)).map(|tap| without(vec![tap], format!("{tap} is left out"))));
    edits
}
