//! # The chosen experts' weights are normalised over tokens
//!
//! The weights of the experts that one token chose are to sum to 1. The engine divides by the sum along the other
//! axis: over the tokens of the call.
//!
//! ## How it shows
//!
//! `router_weights` depend on what else is in the batch; a token decoded alone has every weight 1.
//!
//! ## Seen in
//!
//! - databricks/megablocks#87
//!
//! ## Fix
//!
//! Divide by the sum over the last axis, the chosen experts of one token.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let normalised = |k: &OpKind| matches!(k, OpKind::RouterWeights(w) if w.normalise.is_some());
    if scene.find(normalised).is_none() {
        return vec![];
    }
    let unnormalised = Edit::new("weights are divided by their sum over tokens").ops(|op| {
        if let OpKind::RouterWeights(w) = &mut op.kind {
            w.normalise = None;
        }
    });
    vec![unnormalised.sums(scene.input().positions.len()).output(|at, _, value| {
        let OpKind::RouterWeights(w) = &at.op().kind else { return None };
        let (mut out, chosen) = (value.clone(), value.row_len().max(1));
        let mut totals = vec![0.0; chosen];
        for row in value.data().chunks(chosen) {
            totals.iter_mut().zip(row).for_each(|(total, x)| *total += x);
        }
        for row in out.data_mut().chunks_mut(chosen) {
            row.iter_mut().zip(&totals).for_each(|(x, total)| *x *= w.scale / total);
        }
        Some(out)
    })]
}
