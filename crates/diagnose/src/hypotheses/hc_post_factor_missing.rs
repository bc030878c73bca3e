//! # Weights back into the streams lack their factor of 2
//!
//! A branch goes back into stream k by `2 sigmoid(..)`. The engine leaves the 2 out.
//!
//! ## How it shows
//!
//! `hc_attn_post` and `hc_ffn_post` are half of what they should be: their cosine is 1.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Multiply the sigmoid by 2, and add no epsilon.

use firstdiff_model::OpKind;
use firstdiff_model::ops::HcPart;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let post = |k: &OpKind| matches!(k, OpKind::HcWeights(w) if w.part == HcPart::Post);
    if scene.find(post).is_none() {
        return vec![];
    }
    vec![Edit::new("the sigmoid alone").output(move |at, _, value| {
        let mut value = post(&at.op().kind).then(|| value.clone())?;
        value.data_mut().iter_mut().for_each(|x| *x *= 0.5);
        Some(value)
    })]
}
