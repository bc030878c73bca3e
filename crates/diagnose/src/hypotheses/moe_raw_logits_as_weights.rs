//! # Router logits used as weights
//!
//! The chosen experts are weighted with the router's logits; softmax (or another scoring) is left out.
//! The choice itself is right, since the order of the logits is that of the scores.
//!
//! ## How it shows
//!
//! Weights are negative, or larger than 1.
//!
//! ## Seen in
//!
//! - sgl-project/sglang#35160
//!
//! ## Fix
//!
//! Apply the scoring function before weights are taken.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::RouterScores(_))).is_none() {
        return vec![];
    }
    let raw = |detail: &str| {
        Edit::new(detail).output(|at, inputs, _| {
            matches!(at.op().kind, OpKind::RouterScores(_)).then(|| inputs.first().map(|x| (*x).clone()))?
        })
    };
    let mut edits = vec![raw("experts are weighted with the router's logits")];
    if scene.find(|k| matches!(k, OpKind::RouterWeights(w) if w.normalise.is_some())).is_some() {
        edits.push(raw("experts are weighted with the router's logits, not divided by their sum").ops(|op| {
            if let OpKind::RouterWeights(w) = &mut op.kind {
                w.normalise = None;
            }
        }));
    }
    edits
}
