//! # Padding rows of a captured batch write into a live slot
//!
//! A decode graph is captured for more rows than are used, and the padding rows write their key and value
//! into slot 0, which belongs to a request.
//!
//! ## How it shows
//!
//! From the first decoded token on, slot 0 of the cache holds the key and value of the padding id at
//! position 0.
//!
//! ## Seen in
//!
//! - m0at/rvllm#32 (probably)
//!
//! ## Fix
//!
//! Give padding rows a slot of their own that nobody reads.

use super::mask_padding_ignored::padding_ids;
use super::stored::overwritten;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.input().positions.len() != 1 || scene.input().positions[0] == 0 {
        return vec![];
    }
    let edit = |token: i64| {
        let detail = format!("slot 0 holds the key and value of padding (id {token} at position 0)");
        overwritten(scene, detail, &[token], 0, 0)
    };
    padding_ids(scene).into_iter().flat_map(edit).collect()
}
