//! # Residual streams are mixed by the other index
//!
//! Hyper-connections mix stream j into stream k by `M[j, k]`. The engine takes `M[k, j]`.
//!
//! ## How it shows
//!
//! The streams after a branch are wrong from the first token on, while all weights are right. Rows and columns of M both sum to 1, so
//! sizes stay plausible.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Sum over the first index: `M` transposed times the streams.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::HcExpand(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("the mixing matrix is transposed").input(|at, number, x| match (&at.op().kind, number) {
        (OpKind::HcExpand(_), 2) => Some(x.permute(&[0, 2, 1])),
        _ => None,
    })]
}
