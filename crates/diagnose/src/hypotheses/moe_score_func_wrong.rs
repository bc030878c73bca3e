//! # Another scoring function in the router
//!
//! Softmax for sigmoid or the other way round, or the constant factor on the weights is left out.
//!
//! ## How it shows
//!
//! `router_logits` are right and the weights are not; with another function their ratios differ, with
//! the factor missing all are off by it.
//!
//! ## Seen in
//!
//! - ml-explore/mlx-lm#1354
//! - 1bit-MONSTER/1bit-MONSTER#650
//!
//! ## Fix
//!
//! Read `scoring_func` and `routed_scaling_factor`.

use firstdiff_model::OpKind;
use firstdiff_model::ops::Scoring;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    if let Some((_, op)) = scene.find(|k| matches!(k, OpKind::RouterScores(_)))
        && let OpKind::RouterScores(scores) = &op.kind
    {
        let all = [(Scoring::Softmax, "softmax"), (Scoring::Sigmoid, "sigmoid"), (Scoring::SqrtSoftplus, "sqrt(softplus)")];
        let name = |s| all.iter().find(|(scoring, _)| *scoring == s).map_or("", |(_, name)| name);
        let own = scores.scoring;
        edits.extend(all.iter().filter(|(s, _)| *s != own).map(|&(scoring, says)| {
            Edit::new(format!("the router scores by {says} where the model has {}", name(own))).ops(move |op| {
                if let OpKind::RouterScores(s) = &mut op.kind {
                    s.scoring = scoring;
                }
            })
        }));
    }
    if let Some((_, op)) = scene.find(|k| matches!(k, OpKind::RouterWeights(w) if w.scale != 1.0))
        && let OpKind::RouterWeights(weights) = &op.kind
    {
        edits.push(Edit::new(format!("the factor {} on the weights is left out", weights.scale)).ops(|op| {
            if let OpKind::RouterWeights(w) = &mut op.kind {
                w.scale = 1.0;
            }
        }));
    }
    edits
}
