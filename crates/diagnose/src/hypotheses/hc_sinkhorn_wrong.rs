//! # Another number or order of Sinkhorn iterations
//!
//! The mixing matrix is balanced by dividing by sums over columns and rows in turn, a fixed number of times, columns first.
//!
//! ## How it shows
//!
//! `hc_attn_mix` and `hc_ffn_mix` are off, by much for one iteration, by less than a hundredth for one too few of twenty.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! `hc_sinkhorn_iters` counts the first division by column sums as an iteration.

use firstdiff_model::OpKind;
use firstdiff_model::ops::HcPart;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mix = |k: &OpKind| match k {
        OpKind::HcWeights(w) => match w.part {
            HcPart::Mix { iterations, .. } => Some(iterations),
            _ => None,
        },
        _ => None,
    };
    let Some(own) = scene.find(|k| mix(k).is_some()).and_then(|(_, op)| mix(&op.kind)) else { return vec![] };
    let edit = |detail: String, other: usize, first: bool| {
        Edit::new(detail).ops(move |op| {
            if let OpKind::HcWeights(w) = &mut op.kind
                && let HcPart::Mix { iterations, rows_first, .. } = &mut w.part
            {
                (*iterations, *rows_first) = (other, first);
            }
        })
    };
    let mut counts = vec![1, own - 1, own + 1, own / 2, 2 * own];
    counts.retain(|&n| n != own && n > 0);
    counts.sort_unstable();
    counts.dedup();
    let count = |n: usize| edit(format!("{n} iterations where the model has {own}"), n, false);
    let rows = edit("rows are divided first, columns should be".into(), own, true);
    counts.into_iter().map(count).chain([rows]).collect()
}
