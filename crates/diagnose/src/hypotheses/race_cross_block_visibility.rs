//! # A row read before it was written
//!
//! One part of a kernel reads the newest key or value before another part has written it: a flag is set
//! before the data are visible, or counters are reset too early. The slot still holds what was there
//! before.
//!
//! ## How it shows
//!
//! In some layers and steps the last row of the cache is zero, or another request's. It varies from run to
//! run.
//!
//! ## Seen in
//!
//! - no public case read: a decode megakernel whose barrier counters are reset inside the kernel
//!
//! ## Fix
//!
//! Fence between writing the row and setting the flag; never reset barrier counters inside the kernel that
//! waits on them.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::Cache(_))).is_none() || scene.input().positions.len() != 1 {
        return vec![];
    }
    vec![Edit::new("the newest row is read before it is written: zeros").output(|at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let new = at.site.steps[at.site.step].positions.len();
        let mut stale = value.clone();
        let start = value.len().saturating_sub(new * value.row_len());
        stale.data_mut()[start..].fill(0.0);
        Some(stale)
    })]
}
