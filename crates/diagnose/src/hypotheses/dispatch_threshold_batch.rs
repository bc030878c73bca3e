//! # Another kernel above a number of rows
//!
//! With few rows one kernel runs, with many another, and only the second one is wrong: it leaves out part
//! of the sum, or takes the wrong row.
//!
//! ## How it shows
//!
//! Steps with few rows are right, and all with more are wrong.
//!
//! ## Seen in
//!
//! - ggml-org/llama.cpp#27016
//!
//! ## Fix
//!
//! Test each kernel with row counts around its limits: 1, 8, 9, 16, 17, 32, 64, 65.

use super::fits::{left_out, runs, sources, summed, threshold};
use crate::scene::short;
use crate::{Edit, Scene};

use firstdiff_model::OpKind;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(most) = threshold(scene) else { return vec![] };
    let op = &scene.program().ops[scene.op];
    if !matches!(op.kind, OpKind::Linear(_)) {
        return vec![];
    }
    let with = format!("with more than {most} rows");
    if let Some(kept) = summed(scene) {
        let detail = format!("{with}, the sum leaves out input channels {}", runs(&kept));
        return vec![left_out(scene, kept, &detail).fitted(1)];
    }
    // From one row on, each is some earlier row's.
    let Some(sources) = sources(scene) else { return vec![] };
    let Some(first) = sources.iter().enumerate().position(|(row, &from)| row != from) else { return vec![] };
    let Some(back) = first.checked_sub(sources[first]).filter(|back| *back > 0) else { return vec![] };
    if (first..sources.len()).any(|row| sources[row] + back != row) {
        return vec![];
    }
    let taps = [short(op).to_string()];
    vec![Edit::new(format!("{with}, row {first} and later ones are computed as {back} before")).fitted(2).output(move |at, _, value| {
        taps.iter().any(|t| t == at.tap()).then_some(())?;
        let mut out = value.clone();
        let width = value.row_len();
        for row in first..value.rows() {
            out.data_mut()[row * width..][..width].copy_from_slice(value.row(row - back));
        }
        Some(out)
    })]
}
