//! # Sliding window off by one
//!
//! A window of `w` lets a row see `w` keys, its own included. Here it is one key more or less.
//!
//! ## How it shows
//!
//! Right up to `w` tokens; the first wrong row is at position `w` or just before. Cosine stays at 0.999.
//!
//! ## Seen in
//!
//! - huggingface/transformers#39408
//! - huggingface/transformers#29623
//! - vllm-project/vllm#3385
//! - ml-explore/mlx-lm#390
//!
//! ## Fix
//!
//! A row at `p` sees keys from `p - w + 1` on.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    windows(scene)
        .into_iter()
        .flat_map(|w| [w + 1, w.saturating_sub(1)].map(|other| (w, other)))
        .map(|(w, other)| with_window(format!("window of {other} keys where the model has {w}"), move |old| old.map(|_| other)))
        .collect()
}


/// The windows of the program.
pub(super) fn windows(scene: &Scene) -> Vec<usize> {
    let masked = scene.find(|k| matches!(k, OpKind::AttnProbs(_) | OpKind::VisibleKeys(_))).is_some();
    let mut windows: Vec<usize> = scene
        .program()
        .ops
        .iter()
        .filter_map(|op| match &op.kind {
            OpKind::AttnProbs(probs) => probs.window,
            OpKind::VisibleKeys(seen) => Some(seen.window),
            _ => None,
        })
        .collect();
    windows.sort_unstable();
    windows.dedup();
    if masked { windows } else { vec![] }
}

/// Masks with other windows.
pub(super) fn with_window(detail: String, f: impl Fn(Option<usize>) -> Option<usize> + Send + Sync + 'static) -> Edit {
    Edit::new(detail).ops(move |op| {
        match &mut op.kind {
            OpKind::AttnProbs(probs) => probs.window = f(probs.window),
            OpKind::VisibleKeys(seen) => seen.window = f(Some(seen.window)).unwrap_or(usize::MAX),
            _ => {}
        }
    })
}
