//! # Norm weight used as w - 1
//!
//! The stored weights had 1 taken off for kernels that add it, and these kernels do not; or a family's `1 +
//! w` is left out.
//!
//! ## How it shows
//!
//! Outputs of norms are too small by the normalised input itself; with weights near 1 almost nothing is
//! left.
//!
//! ## Seen in
//!
//! - ggml-org/llama.cpp#5631
//!
//! ## Fix
//!
//! Keep converter and kernel to one convention.

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
    vec![Edit::new("norm weights lack 1").weight(move |w| {
        norms.iter().any(|n| n == w.name).then(|| w.values())?.map(|v| v.iter().map(|w| w + -1.0).collect())
    })]
}
