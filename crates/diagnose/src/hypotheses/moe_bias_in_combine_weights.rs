//! # The router's bias weighs the experts
//!
//! A bias is added to the scores to choose experts, and only for that. The engine weighs the chosen ones by score and bias.
//!
//! ## How it shows
//!
//! `router_topk` is right, `router_weights` are not. Logits stay close: their cosine was 0.991 where this was planted.
//!
//! ## Seen in
//!
//! - MetaX-MACA/vLLM-metax#284
//!
//! ## Fix
//!
//! Gather the weights from the scores without the bias.

use std::collections::BTreeMap;

use firstdiff_model::OpKind;
use firstdiff_trace::tap;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::RouterWeights(_))).is_none() {
        return vec![];
    }
    let biases: BTreeMap<Option<usize>, String> = scene
        .program()
        .ops
        .iter()
        .filter_map(|op| match &op.kind {
            OpKind::TopK(top) => Some((tap::split(&op.tap).0, top.bias.clone()?)),
            _ => None,
        })
        .collect();
    if biases.is_empty() {
        return vec![];
    }
    vec![Edit::new("scores with the bias that only chooses").input(move |at, number, x| {
        if !matches!(at.op().kind, OpKind::RouterWeights(_)) || number != 0 {
            return None;
        }
        let bias = at.weight(biases.get(&at.layer())?)?;
        let mut scores = x.clone();
        for row in scores.data_mut().chunks_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias.iter()).for_each(|(s, b)| *s += f64::from(*b));
        }
        Some(scores)
    })]
}
