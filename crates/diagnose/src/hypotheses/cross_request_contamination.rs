//! # One request reads another one's cache
//!
//! Slots or blocks of two requests that run together are mixed up: one of them attends to the other one's
//! keys and values.
//!
//! ## How it shows
//!
//! With several requests in a batch, some rows' attention is that over another request's tokens. Each
//! request alone is right.
//!
//! ## Seen in
//!
//! - waybarrios/vllm-mlx#384
//!
//! ## Fix
//!
//! Give each running request a code word: a reply may hold only its own.

use std::collections::{BTreeSet, HashMap};

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::{At, Edit, Scene};

/// More sequences than this make too many pairs.
const MOST: usize = 6;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::AttnScores(_))).is_none() {
        return vec![];
    }
    let sequences: BTreeSet<i64> = scene.input().sequence.iter().copied().collect();
    if !(2..=MOST).contains(&sequences.len()) {
        return vec![];
    }
    let pairs = sequences.iter().flat_map(|a| sequences.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
    pairs
        .map(|(from, into)| {
            let detail = format!("sequence {into} reads keys and values of sequence {from}");
            Edit::new(detail).fitted(1).input(move |at, number, x| {
                let reads = matches!(at.op().kind, OpKind::AttnScores(_) | OpKind::AttnHeads(_));
                (reads && number == 1).then(|| exchanged(at, x, from, into))?
            })
        })
        .collect()
}

/// Stored rows, those of one sequence replaced by another one's at the same positions.
fn exchanged(at: &At, x: &Tensor<f64>, from: i64, into: i64) -> Option<Tensor<f64>> {
    let steps = &at.site.steps[..=at.site.step];
    let labels: Vec<(i64, u32)> =
        steps.iter().flat_map(|s| s.sequence.iter().copied().zip(s.positions.iter().copied())).collect();
    if labels.len() != x.rows() {
        return None;
    }
    let places: HashMap<(i64, u32), usize> = labels.iter().enumerate().map(|(i, l)| (*l, i)).collect();
    let (mut out, width) = (x.clone(), x.row_len());
    for (row, (sequence, position)) in labels.iter().enumerate() {
        if let Some(&other) = places.get(&(from, *position)).filter(|_| *sequence == into) {
            out.data_mut()[row * width..][..width].copy_from_slice(x.row(other));
        }
    }
    Some(out)
}
