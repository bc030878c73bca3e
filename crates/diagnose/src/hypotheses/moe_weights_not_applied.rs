//! # Chosen experts are added up without weights
//!
//! Every chosen expert counts 1.
//!
//! ## How it shows
//!
//! The experts' sum is too large, and the smaller a token's weights, the more so.
//!
//! ## Seen in
//!
//! - edwardcapriolo/deliverance#88
//!
//! ## Fix
//!
//! Multiply each expert's output by its router weight.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Experts(_))) else { return vec![] };
    let chosen = op.inputs.get(1).and_then(|v| match scene.program().op(*v).axes.last() {
        Some(firstdiff_model::Axis::Choices(k)) => Some(*k),
        _ => None,
    });
    let constant = |detail: String, weight: f64| {
        Edit::new(detail).input(move |at, number, value| {
            let weights = matches!(at.op().kind, OpKind::Experts(_)) && number == 2;
            weights.then(|| Tensor::new(value.shape().to_vec(), vec![weight; value.len()]).ok())?
        })
    };
    let mut edits = vec![constant("every chosen expert counts 1".into(), 1.0)];
    if let Some(k) = chosen.filter(|k| *k > 1) {
        edits.push(constant(format!("every chosen expert counts 1/{k}"), 1.0 / k as f64));
    }
    edits
}
