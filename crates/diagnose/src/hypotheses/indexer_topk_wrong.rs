//! # The indexer chooses one entry less
//!
//! Each token attends to `index_topk` entries. The engine takes one less.
//!
//! ## How it shows
//!
//! `index_topk` lacks its last choice wherever enough entries are complete.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Choose `min(index_topk, entries)` of the complete entries.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::IndexTopK(_))) else { return vec![] };
    let OpKind::IndexTopK(top) = &op.kind else { return vec![] };
    let k = top.k;
    vec![Edit::new(format!("{} entries where the model has {k}", k - 1)).output(move |at, _, chosen| {
        if !matches!(at.op().kind, OpKind::IndexTopK(_)) {
            return None;
        }
        let mut fewer = chosen.clone();
        fewer.data_mut().chunks_mut(k).filter_map(<[f64]>::last_mut).for_each(|last| *last = -1.0);
        Some(fewer)
    })]
}
