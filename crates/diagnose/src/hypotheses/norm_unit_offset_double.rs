//! # Norm weight used as 1 + w
//!
//! Some families store `w - 1` and multiply by `1 + w`. Here the stored weight is the whole one, and the
//! engine adds 1.
//!
//! ## How it shows
//!
//! Outputs of norms are too large by the normalised input itself. Cosine stays at 0.997.
//!
//! ## Seen in
//!
//! - utensils/mold#1074
//! - vllm-project/vllm#31464
//! - kekzl/imp#459
//!
//! ## Fix
//!
//! Add 1 for families that need it only, and only if the converter has not.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::RmsNorm(_))).is_none() {
        return vec![];
    }
    let norms: Vec<String> = scene
        .program()
        .ops
        .iter()
        .filter(|op| matches!(op.kind, OpKind::RmsNorm(_)))
        .flat_map(|op| op.kind.weights().into_iter().map(|(name, _)| name.to_string()))
        .collect();
    vec![Edit::new("norm weights are used as 1 + w").weight(move |w| {
        norms.iter().any(|n| n == w.name).then(|| w.values())?.map(|v| v.iter().map(|w| w + 1.0).collect())
    })]
}
