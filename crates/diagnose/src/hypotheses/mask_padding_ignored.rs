//! # Padding attended to
//!
//! Prompts of a batch are padded to one length, and the padding's keys are not masked.
//!
//! ## How it shows
//!
//! The longest prompt is right; the others change with the number of padding tokens and with the padding
//! id.
//!
//! ## Seen in
//!
//! - TransformerLensOrg/TransformerLens#1005
//! - ml-explore/mlx-lm#1906
//! - AI-Hypercomputer/maxtext#2179 (probably)
//!
//! ## Fix
//!
//! Mask keys of padding in every row, in prefill and decode.

use std::collections::BTreeMap;

use firstdiff_model::OpKind;
use firstdiff_reference::KeyLabel;
use firstdiff_tensor::Tensor;

use super::masks::more_keys;
use super::pos_left_pad::padding;
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let first = &scene.input().sequence;
    if first.iter().all(|s| Some(s) == first.first()) {
        return vec![];
    }
    let mut edits = Vec::new();
    for token in padding_ids(scene) {
        for position in [0, 1] {
            let Some(caches) = scene.forward(&[token], position, |op| matches!(op.kind, OpKind::Cache(_))) else { continue };
            let detail = format!("padding to the left (id {token}, at position {position}) is attended to");
            edits.extend(more_keys(scene, detail, move |at, _, value| pads(at, &caches, value), labels));
        }
    }
    edits
}

/// Ids that engines pad with.
pub(super) fn padding_ids(scene: &Scene) -> Vec<i64> {
    let config = scene.model.checkpoint.config();
    let id = |key: &str| config.get(key).and_then(|v| v.as_i64());
    let mut ids = vec![0];
    ids.extend(["pad_token_id", "eos_token_id", "bos_token_id"].into_iter().filter_map(id));
    ids.retain(|id| (0..scene.program().vocab as i64).contains(id));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// For each sequence in turn, its padding.
fn labels(at: &At) -> Vec<KeyLabel> {
    let mut sequences = at.rows().sequence.clone();
    sequences.dedup();
    let pads = |&sequence: &i64| vec![KeyLabel { sequence, position: 0 }; padding(at, sequence) as usize];
    sequences.iter().flat_map(pads).collect()
}

fn pads(at: &At, caches: &BTreeMap<usize, Tensor<f64>>, value: &Tensor<f64>) -> Option<Vec<f64>> {
    let cache = caches.get(&at.op().inputs.get(1)?.0)?;
    (cache.row_len() == value.row_len()).then_some(())?;
    Some(labels(at).iter().flat_map(|_| cache.row(0).to_vec()).collect())
}
