//! # Yarn is not applied
//!
//! Layers with compressed keys rotate by frequencies that yarn slows down. The engine uses the plain ones.
//!
//! ## How it shows
//!
//! Slow pairs of channels are wrong, fast ones right, from the second token on.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Apply `rope_scaling` to the frequencies of `compress_rope_theta`, and to no others.

use firstdiff_model::{OpKind, RopeFrequencies};

use super::tools::{compressed_rope, plain};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::TailRope(_))) else { return vec![] };
    let OpKind::TailRope(own) = &op.kind else { return vec![] };
    // A flat object of settings may hold the other layers' base.
    let theta = scene.number("compress_rope_theta").or_else(|| compressed_rope(scene, "rope_theta"));
    let frequencies = own.frequencies.clone();
    let other = RopeFrequencies::Fixed(plain(theta.unwrap_or(160_000.0), own.rotated));
    vec![Edit::new("frequencies without yarn").ops(move |op| {
        if let OpKind::TailRope(rope) = &mut op.kind
            && rope.frequencies == frequencies
        {
            rope.frequencies = other.clone();
        }
    })]
}
