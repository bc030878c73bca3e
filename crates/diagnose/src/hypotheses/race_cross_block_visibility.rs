//! # A row read before it was written
//!
//! One part of a kernel reads the newest key or value before another part has written it: a flag is set
//! before the data are visible, or counters are reset too early. The slot still holds what was there
//! before. Where the parts hand each other the projections in memory that every layer writes again, what is
//! read too early is the layer before's, or the last layer's of the step before, or what nobody wrote.
//!
//! ## How it shows
//!
//! In some layers and steps the last row of the cache is zero, or another request's. Or some channels of it
//! are: the projection is right, and a part of its copy in the cache, of its rotation or of its norm is that of
//! another layer's, zero, or no number, where other heads, layers or steps have theirs. What a cache took in so
//! stays wrong. It varies from run to run.
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

use super::handed;
use super::stored::near;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = whole_row(scene);
    edits.extend(handed::read_early(scene).filter(|_| scene.input().positions.len() == 1));
    edits
}

/// The cache's newest row is something else as a whole.
fn whole_row(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::Cache(_))).is_none() || scene.input().positions.len() != 1 {
        return vec![];
    }
    let zeros = Edit::new("the newest row is read before it is written: zeros").output(|at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let new = at.rows().positions.len();
        let mut stale = value.clone();
        let start = value.len().saturating_sub(new * value.row_len());
        stale.data_mut()[start..].fill(0.0);
        Some(stale)
    });
    std::iter::once(zeros).chain(earlier(scene)).collect()
}

/// The newest row holds something that is gone in the next step, in which its right value is there.
fn earlier(scene: &Scene) -> Option<Edit> {
    let op = scene.alone().filter(|op| matches!(op.kind, OpKind::Cache(_)))?;
    let exact = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape())?;
    let last = exact.rows().checked_sub(1)?;
    let after = scene.recorded(scene.op, scene.step + 1).filter(|a| a.rows() > last)?;
    let wrong = |row: usize| !near(scene.engine.row(row), exact.row(row), 1e-4);
    let only = (0..last).all(|row| !wrong(row)) && wrong(last);
    (only && near(after.row(last), exact.row(last), 1e-4)).then_some(())?;
    // A few channels that are wrong everywhere are a kernel's own.
    let right = |(x, y): (&f64, &f64)| (x - y).powi(2) <= 1e-4 * y * y;
    let kept = scene.engine.row(last).iter().zip(exact.row(last)).filter(|pair| right(*pair)).count();
    (2 * kept <= exact.row_len() || handed::elsewhere(scene)).then_some(())?;
    // The row that was read is nobody's to predict: it is taken from the engine.
    let detail = "the newest row is read before it is written: what the slot held before; the next step has it";
    Some(Edit::new(detail).fitted(2 * op.axes.len() * exact.row_len()).output(|at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let recorded = at.recorded(at.site.index, at.site.step).filter(|r| r.shape() == value.shape())?;
        let start = value.len() - value.row_len();
        let mut stale = value.clone();
        stale.data_mut()[start..].copy_from_slice(&recorded.data()[start..]);
        Some(stale)
    }))
}
