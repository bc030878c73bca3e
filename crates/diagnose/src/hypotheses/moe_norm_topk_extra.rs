//! # Weights of the chosen experts are normalised where the model does not
//!
//! The engine divides the scores of the chosen experts by their sum, or takes the softmax over the
//! chosen ones alone, which is the same. The model does neither.
//!
//! ## How it shows
//!
//! `router_weights` of a token sum to 1, the model's to less. Each token's experts are too large by one
//! factor.
//!
//! ## Seen in
//!
//! - lablup/mlxcel#391
//!
//! ## Fix
//!
//! Read `norm_topk_prob`; its default is false.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let plain = |k: &OpKind| matches!(k, OpKind::RouterWeights(w) if w.normalise.is_none());
    if scene.find(plain).is_none() {
        return vec![];
    }
    vec![Edit::new("the chosen experts' weights are divided by their sum").ops(|op| {
        if let OpKind::RouterWeights(w) = &mut op.kind {
            w.normalise = Some(0.0);
        }
    })]
}
