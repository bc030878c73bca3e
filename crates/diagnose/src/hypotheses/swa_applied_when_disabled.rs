//! # A window in layers that have none
//!
//! The configuration names a window and switches it off, for the model or for this layer, and the engine
//! applies it.
//!
//! ## How it shows
//!
//! Right up to `w` tokens, wrong after it, in layers that should see everything.
//!
//! ## Seen in
//!
//! - huggingface/transformers#38045
//!
//! ## Fix
//!
//! Obey `use_sliding_window`, `layer_types` and `max_window_layers`.

use firstdiff_model::OpKind;

use super::swa_off_by_one::{windows, with_window};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let here = matches!(scene.find(|k| matches!(k, OpKind::AttnProbs(_))), Some((_, op)) if matches!(&op.kind, OpKind::AttnProbs(p) if p.window.is_none()));
    let configured = scene.number("sliding_window").map(|w| w as usize);
    let elsewhere = windows(scene).first().copied();
    let Some(window) = configured.or(elsewhere).filter(|_| here) else { return vec![] };
    vec![with_window(format!("a window of {window} keys in a layer that has none"), move |old| match old {
        None => Some(window),
        // Exchanged with the layers that have one.
        Some(_) => None,
    })]
}
