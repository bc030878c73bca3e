//! # A windowed cache's ring read in the wrong order
//!
//! Layers with a window keep their keys in a ring. After it has wrapped, rows are read in stored order, or
//! those before the wrap are lost.
//!
//! ## How it shows
//!
//! Rows of the cache are other rows of the same window, from the step on in which the ring wraps.
//!
//! ## Seen in
//!
//! - ollama/ollama#14912
//! - ollama/ollama#15591
//! - ml-explore/mlx-swift-lm#584
//! - Blaizzy/mlx-vlm#1715
//!
//! ## Fix
//!
//! Read the ring from its oldest row, or give each row its position.

use std::collections::BTreeMap;

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let here = |i: &usize| scene.ops.contains(i);
    if !caches_with_window(scene).keys().any(here) {
        return vec![];
    }
    let mut edits = super::kv_slot_mapping::moved(scene);
    for edit in &mut edits {
        edit.detail = format!("the ring is read in stored order: {}", edit.detail);
    }
    let windows = caches_with_window(scene);
    edits.push(Edit::new("rows of the ring before its wrap are lost").output(move |at, _, value| {
        let window = *windows.get(&at.site.index)?;
        let (rows, width) = (value.rows(), value.row_len());
        let first = rows.checked_sub(window).filter(|_| at.rows().positions.len() == 1)?;
        let wrapped = match rows % window {
            0 => window,
            n => n,
        };
        let mut out = value.clone();
        out.data_mut()[first * width..(rows - wrapped) * width].fill(0.0);
        Some(out)
    }));
    edits
}

/// The caches of windowed layers, with their windows.
fn caches_with_window(scene: &Scene) -> BTreeMap<usize, usize> {
    let ops = &scene.program().ops;
    let layer = |op: &firstdiff_model::Op| firstdiff_trace::tap::split(&op.tap).0;
    let window = |l: Option<usize>| {
        ops.iter().find_map(|op| match &op.kind {
            OpKind::AttnProbs(p) if layer(op) == l => p.window,
            _ => None,
        })
    };
    let caches = ops.iter().enumerate().filter(|(_, op)| matches!(op.kind, OpKind::Cache(_)));
    caches.filter_map(|(i, op)| Some((i, window(layer(op)).filter(|w| *w > 0)?))).collect()
}
