//! # Another scoring function in the router
//!
//! What the router makes of its logits is not the model's: a softmax or sigmoid where it has the root of a softplus, or the other
//! way round.
//!
//! ## How it shows
//!
//! `router_scores` are wrong at every token, and with them weights and often choices.
//!
//! ## Seen in
//!
//! - ml-explore/mlx-lm#1354
//! - 1bit-MONSTER/1bit-MONSTER#650
//!
//! ## Fix
//!
//! Read `scoring_func`.

use firstdiff_model::OpKind;
use firstdiff_model::ops::Scoring;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::RouterScores(_))) else { return vec![] };
    let OpKind::RouterScores(own) = &op.kind else { return vec![] };
    let own = own.scoring;
    [(Scoring::Softmax, "softmax"), (Scoring::Sigmoid, "sigmoid"), (Scoring::SqrtSoftplus, "root of softplus")]
        .into_iter()
        .filter(|(scoring, _)| *scoring != own)
        .map(|(scoring, name)| {
            Edit::new(format!("{name}, which is not the model's")).ops(move |op| {
                if let OpKind::RouterScores(scores) = &mut op.kind {
                    scores.scoring = scoring;
                }
            })
        })
        .collect()
}
