//! # Keys that fill the last tile attended to
//!
//! The last tile of keys is filled up with zeros, and these are not masked: each gets a score of 0 and a
//! share of the softmax, for a value of zero.
//!
//! ## How it shows
//!
//! Right where the number of keys fills whole tiles. Elsewhere each row of a head is too small by a factor
//! of its own; a cosine for each row sees nothing.
//!
//! ## Seen in
//!
//! - flashinfer-ai/flashinfer#5090
//!
//! ## Fix
//!
//! Mask by the number of keys, not by the size of the tile.

use super::masks::{TILES, softmax};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for tile in TILES {
        let detail = format!("keys that fill the last tile of {tile} have score 0 and are not masked");
        edits.extend(softmax(scene, detail, move |_, lines, head, row| {
            let line = lines.line(head, row);
            let more = lines.keys.next_multiple_of(tile) - lines.keys;
            let max = line.max(0..lines.keys).max(0.0);
            let sum = line.sum(0..lines.keys, max) + more as f64 * (-max).exp();
            let weight = |k: usize| if line.seen[k] { (line.scores[k] - max).exp() / sum } else { 0.0 };
            (0..lines.keys).map(weight).collect()
        }));
    }
    edits
}
