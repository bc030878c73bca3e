//! # The indexer counts negative products
//!
//! An index score adds up, over heads, what is positive of query times entry. The engine adds up all of it.
//!
//! ## How it shows
//!
//! `index_scores` are wrong where any head's product is negative; the choice changes.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Cut each head's product off at zero before it is weighted.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::IndexScores(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("negative products count too").ops(|op| {
        if let OpKind::IndexScores(scores) = &mut op.kind {
            scores.relu = false;
        }
    })]
}
