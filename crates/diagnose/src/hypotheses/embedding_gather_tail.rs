//! # The last columns of the embedding are not gathered
//!
//! The kernel copies whole vectors of so many elements, and the rest of each row is left zero or holds what
//! was there before.
//!
//! ## How it shows
//!
//! The first channels are right, and errors lie in the last ones alone.
//!
//! ## Seen in
//!
//! - tenstorrent/tt-metal#44500
//!
//! ## Fix
//!
//! Handle the tail, and test with a width that is no multiple of the vector.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let op = &scene.program().ops[scene.op];
    let Some(exact) = scene.exact(scene.op).filter(|_| matches!(op.kind, OpKind::Embed(_))) else { return vec![] };
    let (rows, width) = (exact.rows(), exact.row_len());
    let mut edits = Vec::new();
    let zero = (0..width).rev().take_while(|&c| (0..rows).all(|r| scene.engine.row(r)[c] == 0.0)).count();
    if zero > 0 && zero < width {
        edits.push(tail(format!("the last {zero} of {width} columns are zero"), width - zero, |_, _| 0.0));
    }
    // The row before, whose tail is still in the buffer.
    let size = (exact.data().iter().map(|y| y * y).sum::<f64>() / exact.len().max(1) as f64).sqrt();
    let near = |r: usize, c: usize| (scene.engine.row(r)[c] - exact.row(r - 1)[c]).abs() < 0.02 * size;
    let stale = (0..width).rev().take_while(|&c| (1..rows).all(|r| near(r, c))).count();
    if rows > 1 && stale > 0 && stale < width {
        let detail = format!("the last {stale} of {width} columns are those of the row before");
        edits.push(tail(detail, width - stale, |before, own| before.unwrap_or(own)));
    }
    edits
}

/// Another tail, from the value of the row before and the own one.
fn tail(detail: String, first: usize, f: fn(Option<f64>, f64) -> f64) -> Edit {
    Edit::new(detail).fitted(1).output(move |at, _, value| {
        (at.tap() == "embed").then_some(())?;
        let (mut out, width) = (value.clone(), value.row_len());
        for row in 0..value.rows() {
            for c in first..width {
                let before = row.checked_sub(1).map(|row| value.row(row)[c]);
                out.data_mut()[row * width + c] = f(before, value.row(row)[c]);
            }
        }
        Some(out)
    })
}
