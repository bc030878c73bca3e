//! # Causal mask off by one
//!
//! A row sees the key after its own, or does not see its own.
//!
//! ## How it shows
//!
//! Every row but one is slightly wrong; cosine stays near 0.93. In decode, where there is no later key, an
//! own key that is masked still shows.
//!
//! ## Seen in
//!
//! - no public case read; common in hand-written kernels
//!
//! ## Fix
//!
//! A row sees keys whose position is at most its own: `key <= row`.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = with_positions(scene, "one later key is visible", |positions| {
        positions.iter_mut().for_each(|p| *p += 1);
    });
    edits.extend(with_positions(scene, "a row does not see its own key (the first one does)", |positions| {
        positions.iter_mut().for_each(|p| *p = p.saturating_sub(1));
    }));
    edits
}

/// Masks that see up to other positions.
pub(super) fn with_positions(scene: &Scene, detail: &str, f: impl Fn(&mut [u32]) + Send + Sync + 'static) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::AttnProbs(_))).is_none() {
        return vec![];
    }
    vec![Edit::new(detail).positions(move |at, positions| {
        if matches!(at.op().kind, OpKind::AttnProbs(_)) {
            f(positions);
        }
    })]
}
