//! # Keys and values written to the wrong slot
//!
//! A token's key and value go to another slot than attention later reads for it, over another token's row;
//! the own slot keeps what it held.
//!
//! ## How it shows
//!
//! Rows of the cache hold other tokens' keys. Found by matching each wrong row with the rows that were
//! written.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#36580
//!
//! ## Fix
//!
//! Compute the slot from block table and position once, for writing and reading alike.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = moved(scene);
    // Where attention's output alone is recorded, slots have to be guessed.
    let target = matches!(scene.program().ops[scene.op].kind, OpKind::Cache(_));
    let one_sequence = scene.input().sequence.iter().all(|s| Some(s) == scene.input().sequence.first());
    if target || !one_sequence || scene.step == 0 || scene.find(|k| matches!(k, OpKind::Cache(_))).is_none() {
        return edits;
    }
    if scene.input().positions.len() == 1 {
        for shift in [-1, 1] {
            let detail = format!("decoded tokens are written {shift:+} slots off");
            edits.push(written(detail, move |slot, rows| if rows == 1 { slot as i64 + shift } else { slot as i64 }));
        }
    }
    for wrap in [8, 16, 32, 64, 128, 256, 512, 1024] {
        let detail = format!("slots of a prompt wrap after {wrap}");
        edits.push(written(detail, move |slot, rows| if rows > 1 { slot as i64 % wrap } else { slot as i64 }));
    }
    edits
}

/// Caches whose rows are written elsewhere: `slot` gets a row's right slot and the number of rows of its step.
/// Slots that nobody wrote are zero.
fn written(detail: String, slot: impl Fn(usize, usize) -> i64 + Send + Sync + 'static) -> Edit {
    Edit::new(detail).output(move |at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let (width, mut row) = (value.row_len(), 0);
        let mut out = Tensor::zeros(value.shape().to_vec());
        for step in &at.site.steps[..=at.site.step] {
            let rows = step.positions.len();
            for _ in 0..rows {
                (row < value.rows()).then_some(())?;
                let target = slot(row, rows);
                if (0..value.rows() as i64).contains(&target) {
                    out.data_mut()[target as usize * width..][..width].copy_from_slice(value.row(row));
                }
                row += 1;
            }
        }
        Some(out)
    })
}

/// A cache whose rows lie elsewhere, or were never written.
pub(super) fn moved(scene: &Scene) -> Vec<Edit> {
    let Some(op) = scene.alone().filter(|op| matches!(op.kind, OpKind::Cache(_))) else { return vec![] };
    let (Some(exact), _) = (scene.exact(scene.op), op) else { return vec![] };
    let rows = scene.engine.rows();
    if rows != exact.rows() {
        return vec![];
    }
    // Every row may be compared with every other.
    if !scene.may(10 * (rows * exact.len()) as u64) {
        return vec![];
    }
    // Each wrong row is another token's, or was never written.
    let mut from: Vec<Option<usize>> = Vec::with_capacity(rows);
    let mut moved = Vec::new();
    for row in 0..rows {
        let here = scene.engine.row(row);
        let near = |other: usize| close(here, exact.row(other));
        if near(row) {
            from.push(Some(row));
        } else if here.iter().all(|x| *x == 0.0) {
            from.push(None);
            moved.push(row);
        } else if let Some(other) = nearest(here, exact) {
            from.push(Some(other));
            moved.push(row);
        } else {
            return vec![];
        }
    }
    // Rows that hold nothing at all are no other slot's.
    if moved.is_empty() || moved.iter().all(|&r| from[r].is_none()) {
        return vec![];
    }
    let detail = match from[moved[0]] {
        Some(other) => format!("slot {} holds the row of slot {other}; {} slots are wrong", moved[0], moved.len()),
        None => format!("slot {} was never written; {} slots are wrong", moved[0], moved.len()),
    };
    // Other steps and layers are matched in rows of their own.
    vec![Edit::new(detail).fitted(moved.len()).output(|at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let recorded = at.recorded(at.site.index, at.site.step)?;
        matched(&recorded, value)
    })]
}

/// The exact rows in the order in which the engine holds them.
fn matched(recorded: &Tensor<f64>, exact: &Tensor<f64>) -> Option<Tensor<f64>> {
    let mut out = exact.clone();
    let width = exact.row_len();
    let first = exact.rows().checked_sub(recorded.rows())?;
    for row in 0..recorded.rows() {
        let here = recorded.row(row);
        let target = &mut out.data_mut()[(first + row) * width..][..width];
        if here.iter().all(|x| *x == 0.0) {
            target.fill(0.0);
        } else {
            let other = nearest(here, exact)?;
            target.copy_from_slice(exact.row(other));
        }
    }
    Some(out)
}

/// The exact row that a row is a copy of, up to rounding.
fn nearest(row: &[f64], exact: &Tensor<f64>) -> Option<usize> {
    let error = |o: &usize| row.iter().zip(exact.row(*o)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let best = (0..exact.rows()).min_by(|a, b| error(a).total_cmp(&error(b)))?;
    close(row, exact.row(best)).then_some(best)
}

/// Whether two rows are the same up to what storing them makes of it.
fn close(a: &[f64], b: &[f64]) -> bool {
    let error: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    error <= 1e-4 * size
}
