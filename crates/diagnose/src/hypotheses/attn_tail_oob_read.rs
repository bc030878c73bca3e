//! # The last tile of keys read past its end
//!
//! The last tile of keys is not full, and the kernel reads on: into the next head's keys and values, or
//! whatever lies there.
//!
//! ## How it shows
//!
//! Right where the number of keys fills whole tiles. Elsewhere rows attend to keys that are not theirs;
//! what these are changes with what memory held.
//!
//! ## Seen in
//!
//! - pytorch/pytorch#169222
//!
//! ## Fix
//!
//! Mask or clamp the last tile's loads by the number of keys.

use firstdiff_model::OpKind;
use firstdiff_reference::KeyLabel;
use firstdiff_tensor::Tensor;

use super::masks::{TILES, more_keys};
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let decode = scene.input().positions.len() == 1;
    let mut edits = Vec::new();
    for tile in TILES {
        let detail = format!("the last tile of {tile} keys reads on into the next head's");
        edits.extend(more_keys(
            scene,
            detail,
            move |at, _, value| next_heads(at, value, more(at, tile, decode)),
            move |at| {
                let sequence = at.rows().sequence.first().copied().unwrap_or(0);
                vec![KeyLabel { sequence, position: 0 }; more(at, tile, decode)]
            },
        ));
    }
    edits
}

fn more(at: &At, tile: usize, decode: bool) -> usize {
    let keys = at.keys().len();
    if decode && at.rows().positions.len() > 1 { 0 } else { keys.next_multiple_of(tile) - keys }
}

/// Rows after the last one, as keys lie by head: the next head's first ones, and nothing after the last head.
fn next_heads(at: &At, value: &Tensor<f64>, more: usize) -> Option<Vec<f64>> {
    let (heads, dim) = match &at.op().kind {
        OpKind::AttnScores(s) => (s.kv_heads, s.dim),
        OpKind::AttnHeads(h) => (h.kv_heads, h.dim),
        _ => return None,
    };
    let keys = value.rows();
    let mut rows = Vec::with_capacity(more * heads * dim);
    for i in 0..more {
        for head in 0..heads {
            let flat = head * keys + keys + i;
            match (flat / keys, flat % keys) {
                (head, key) if head < heads => rows.extend_from_slice(&value.row(key)[head * dim..][..dim]),
                _ => rows.extend(std::iter::repeat_n(0.0, dim)),
            }
        }
    }
    Some(rows)
}
