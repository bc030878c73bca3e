//! # Tokens inside compressed entries are hidden from the window
//!
//! A token may be seen twice: in the window, and inside a compressed entry. That is intended. The engine shows it once.
//!
//! ## How it shows
//!
//! `visible_keys` lacks keys of complete blocks.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Do not remove anything from the window: the last w tokens, the row's own included, are always visible.

use super::tools::visible_keys;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    visible_keys(scene, "keys of complete blocks are left out of the window", |seen| {
        seen.keys(|position, key, m, now| now && (key / m + 1) * m > position + 1);
    })
}
