//! # A compressed entry is seen one token too late
//!
//! The token that completes a block sees its entry in the same step. The engine shows it from the next token on.
//!
//! ## How it shows
//!
//! `visible_keys` lacks the newest entry at every m-th token. Logits stay close: their cosine was 0.992 where this was planted.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Entry e is visible to the token at position t when `e < (t + 1) / m`, rounded down. In decode, compress first, then attend.

use super::tools::visible_keys;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    visible_keys(scene, "a token does not see the entry that it completes", |seen| {
        seen.entries(|position, entry, m, now| now && (entry + 1) * m != position + 1);
    })
}
