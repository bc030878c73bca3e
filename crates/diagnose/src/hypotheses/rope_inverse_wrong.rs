//! # Attention is not rotated back
//!
//! Values are the rotated keys, so what attention gives is rotated too; it must be turned back by the row's own position. The engine
//! leaves that out, or turns the same way again.
//!
//! ## How it shows
//!
//! The rotated channels of `attn_unrotated` are wrong from the second token on; the others are right.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Rotate by minus the query's position, with the layer's own frequencies, before the output projection.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::TailRope(rope) if rope.inverse)).is_none() {
        return vec![];
    }
    let missing = Edit::new("not rotated back").output(|at, inputs, _| match &at.op().kind {
        OpKind::TailRope(rope) if rope.inverse => inputs.first().map(|x| (*x).clone()),
        _ => None,
    });
    let again = Edit::new("rotated by the position instead of minus the position").ops(|op| {
        if let OpKind::TailRope(rope) = &mut op.kind {
            rope.inverse = false;
        }
    });
    vec![missing, again]
}
