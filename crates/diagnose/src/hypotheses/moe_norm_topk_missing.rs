//! # Weights of the chosen experts are not normalised
//!
//! The model divides the scores of the chosen experts by their sum, the engine takes them as they are.
//!
//! ## How it shows
//!
//! `router_weights` of a token sum to less than they should. Each token's experts are too small by one
//! factor, which no cosine sees.
//!
//! ## Seen in
//!
//! - pytorch/torchtitan#1448
//! - AI-Hypercomputer/maxtext#1026
//!
//! ## Fix
//!
//! Read `norm_topk_prob`; divide after choosing.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let normalised = |k: &OpKind| matches!(k, OpKind::RouterWeights(w) if w.normalise.is_some());
    if scene.find(normalised).is_none() {
        return vec![];
    }
    vec![Edit::new("the chosen experts' weights are not divided by their sum").ops(|op| {
        if let OpKind::RouterWeights(w) = &mut op.kind {
            w.normalise = None;
        }
    })]
}
