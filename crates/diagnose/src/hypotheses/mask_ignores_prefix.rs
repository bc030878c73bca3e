//! # A later chunk's mask without the cached prefix
//!
//! The prompt is fed in pieces, and the mask of a later piece is made for its own tokens alone.
//!
//! ## How it shows
//!
//! The first chunk is right. Rows of later ones see only their own chunk, or as many of the oldest keys as
//! they should see of their own.
//!
//! ## Seen in
//!
//! - huggingface/candle#3743
//!
//! ## Fix
//!
//! Make the mask `[T, cached + T]`, the cached keys all visible.

use super::masks::seeing;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let positions = &scene.input().positions;
    if positions.len() < 2 || positions[0] == 0 {
        return vec![];
    }
    let mut edits = seeing(scene, "later chunks of a prompt see only themselves", |_, pair| {
        pair.seen() && (pair.rows.len() == 1 || pair.key >= pair.kept())
    });
    edits.extend(seeing(scene, "a later chunk's square mask lies over the oldest keys", |_, pair| {
        if pair.rows.len() == 1 { pair.seen() } else { pair.key <= pair.row }
    }));
    edits
}
