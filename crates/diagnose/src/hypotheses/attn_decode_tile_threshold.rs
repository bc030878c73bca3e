//! # Decode sees only as many keys as one partition holds
//!
//! The decode kernel handles one tile or partition of the keys, and what comes after it is lost.
//!
//! ## How it shows
//!
//! Right up to a number of keys that is the same for every prompt, wrong from the next one on.
//!
//! ## Seen in
//!
//! - aws-neuron/neuronx-distributed-inference#106 (probably)
//!
//! ## Fix
//!
//! Loop over partitions, and test at their size, one below and one above.

use super::graph_stale_args::captured;
use super::masks::seeing;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let keys = firstdiff_reference::visible_keys(&scene.steps()[..=scene.step]).pop().unwrap_or(0);
    if scene.input().positions.len() != 1 || keys < 2 {
        return vec![];
    }
    // The first wrong step is the first one with a key too many.
    let first = captured(scene).map(|s| firstdiff_reference::visible_keys(&scene.steps()[..=s]).pop().unwrap_or(0));
    let mut edits = Vec::new();
    // A graph that was captured with the first decoded token looks the same.
    if first.is_some_and(|first| first < keys - 1) {
        let seen = keys - 1;
        let edit = seeing(scene, format!("in decode only the first {seen} keys are seen"), move |_, pair| {
            pair.seen() && (pair.rows.len() > 1 || pair.key < seen)
        });
        edits.extend(edit.into_iter().map(|e| e.fitted(1)));
    }
    for size in super::masks::TILES.into_iter().filter(|size| *size < keys) {
        edits.extend(seeing(scene, format!("in decode only the first {size} keys are seen"), move |_, pair| {
            pair.seen() && (pair.rows.len() > 1 || pair.key < size)
        }));
        let detail = format!("in decode keys after the last whole tile of {size} are not seen");
        edits.extend(seeing(scene, detail, move |_, pair| {
            pair.seen() && (pair.rows.len() > 1 || pair.key < pair.keys.len() / size * size)
        }));
    }
    edits
}
