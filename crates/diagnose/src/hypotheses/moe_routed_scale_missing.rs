//! # Routed experts are not scaled
//!
//! The weights of the chosen experts are multiplied by `routed_scaling_factor`. The engine leaves that out.
//!
//! ## How it shows
//!
//! `router_weights` are off by that one factor; their cosine is 1.
//!
//! ## Seen in
//!
//! - ml-explore/mlx-lm#1354
//!
//! ## Fix
//!
//! Multiply the normalised weights by `routed_scaling_factor`; the shared expert is not scaled.

use firstdiff_model::OpKind;

use super::tools::short_number;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::RouterWeights(w) if w.scale != 1.0)) else {
        return vec![];
    };
    let OpKind::RouterWeights(own) = &op.kind else { return vec![] };
    vec![Edit::new(format!("1 where the model has {}", short_number(own.scale))).ops(|op| {
        if let OpKind::RouterWeights(weights) = &mut op.kind {
            weights.scale = 1.0;
        }
    })]
}
