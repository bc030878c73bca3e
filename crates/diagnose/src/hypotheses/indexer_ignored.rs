//! # Every compressed entry is attended to
//!
//! Sparse layers attend to the entries that the indexer chooses. The engine attends to all of them.
//!
//! ## How it shows
//!
//! `index_topk` is right and `visible_keys` shows more. Short prompts hide it: with few entries all are chosen.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Mask the entries that are not among the chosen ones.

use super::tools::visible_keys;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    visible_keys(scene, "every complete entry is attended to", |seen| {
        seen.entries(|position, entry, m, _| (entry + 1) * m <= position + 1);
    })
}
