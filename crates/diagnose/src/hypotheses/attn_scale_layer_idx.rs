//! # Attention scores divided by the layer's number
//!
//! GPT-2's option to divide scores by the layer's number, counted from 1, is applied to a model without it.
//!
//! ## How it shows
//!
//! Layer 0 is right; in layer `l` scores are too small by `l + 1`.
//!
//! ## Seen in
//!
//! - TransformerLensOrg/TransformerLens#27
//!
//! ## Fix
//!
//! Apply `scale_attn_by_inverse_layer_idx` only where the configuration has it.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::AttnScores(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("scores are also divided by the layer's number, from 1").ops(|op| {
        let layer = firstdiff_trace::tap::split(&op.tap).0.unwrap_or(0);
        if let OpKind::AttnScores(s) = &mut op.kind {
            s.scale /= (layer + 1) as f64;
        }
    })]
}
