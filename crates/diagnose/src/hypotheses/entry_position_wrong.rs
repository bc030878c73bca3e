//! # A compressed entry rotates by another position
//!
//! An entry rotates by the position of its block's first token. The engine takes the last one, or the entry's number.
//!
//! ## How it shows
//!
//! `kv_entry` and `index_entry` are wrong in their rotated channels; the entry at position 0 may be right.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Entry e of m tokens rotates by e·m.

use firstdiff_model::ops::EntryPlace;
use firstdiff_model::{Axis, OpKind};

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let entries = |k: &OpKind| matches!(k, OpKind::TailRope(rope) if matches!(rope.rows, Axis::NewEntries(_)));
    if scene.find(entries).is_none() {
        return vec![];
    }
    [(EntryPlace::Last, "the position of the block's last token"), (EntryPlace::Number, "the entry's own number")]
        .map(|(place, what)| {
            Edit::new(format!("{what} where it is the position of the first token")).ops(move |op| {
                if let OpKind::TailRope(rope) = &mut op.kind {
                    rope.entry = place;
                }
            })
        })
        .into()
}
