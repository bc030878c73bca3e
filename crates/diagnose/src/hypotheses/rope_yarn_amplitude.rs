//! # Yarn amplifies where the model does not
//!
//! Yarn usually multiplies cosines and sines by `0.1 ln(factor) + 1`. DeepSeek-V4 does not, and an engine that takes yarn from a
//! library does.
//!
//! ## How it shows
//!
//! Rotated channels are larger by one factor, at every token, the first included.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Keep the amplitude at 1 unless the configuration gives an attention_factor.

use firstdiff_model::OpKind;

use super::tools::{compressed_rope, short_number};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::TailRope(_))) else { return vec![] };
    let OpKind::TailRope(own) = &op.kind else { return vec![] };
    let Some(factor) = compressed_rope(scene, "factor").filter(|f| *f > 1.0) else { return vec![] };
    let (amplitude, frequencies) = (0.1 * factor.ln() + 1.0, own.frequencies.clone());
    vec![Edit::new(format!("amplitude {} where the model has 1", short_number(amplitude))).ops(move |op| {
        if let OpKind::TailRope(rope) = &mut op.kind
            && rope.frequencies == frequencies
        {
            rope.amplitude = amplitude;
        }
    })]
}
