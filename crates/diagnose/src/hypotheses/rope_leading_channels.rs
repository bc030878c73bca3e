//! # The first channels rotate instead of the last
//!
//! A head is laid out as unrotated channels, then rotated ones. The engine rotates the first.
//!
//! ## How it shows
//!
//! Channels at both ends of a head are wrong, from the second token on.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//! - transformers' own class documentation says the first, its code takes the last
//!
//! ## Fix
//!
//! Rotate the last `qk_rope_head_dim` channels of queries, keys, entries and of what attention gives.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::TailRope(rope) if rope.rotated < rope.dim)).is_none() {
        return vec![];
    }
    vec![Edit::new("the first channels of a head rotate, the last ones should").ops(|op| {
        if let OpKind::TailRope(rope) = &mut op.kind {
            rope.leading = true;
        }
    })]
}
