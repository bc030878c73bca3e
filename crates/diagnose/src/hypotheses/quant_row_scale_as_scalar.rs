//! # A scale for each row is read as one number
//!
//! Inputs of a matrix product are quantised with a scale for each row. The kernel takes one number, the first row's, for all of
//! them. Or the scales of a weight are a table, and a kernel takes its first one for the whole matrix of each expert.
//!
//! ## How it shows
//!
//! Each row is off by one factor, the ratio of two rows' largest magnitudes; the first row is right. With one row, as in decode,
//! nothing is wrong, and a row's cosine never shows it. A weight's scale instead makes whole columns of the product wrong, in decode too.
//!
//! ## Seen in
//!
//! - a DeepSeek-V4 NVFP4 kernel set: `global_scale_a` is one number for each expert, and was given one for each row
//!
//! ## Fix
//!
//! Put the rows' factors into the block scales, or apply them row by row after the product.

use firstdiff_model::OpKind;
use firstdiff_reference::Misreading;
use firstdiff_tensor::Tensor;

use super::scaled;
use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let products = scene.ops.iter().map(|&i| &scene.program().ops[i]).filter(|op| matches!(op.kind, OpKind::Linear(_)));
    let mut edits: Vec<Edit> = products
        .map(|op| {
            let name = short(op).to_string();
            Edit::new(format!("{name} uses the first row's scale for every row")).output(move |at, inputs, value| {
                if at.tap() != name || !matches!(at.op().kind, OpKind::Linear(_)) {
                    return None;
                }
                let largest = rows(inputs.first()?);
                let first = *largest.first()?;
                let mut value: Tensor<f64> = value.clone();
                let width = value.row_len().max(1);
                for (row, largest) in value.data_mut().chunks_mut(width).zip(largest) {
                    row.iter_mut().for_each(|x| *x *= first / largest);
                }
                Some(value)
            })
        })
        .collect();
    let what = "one scale, the first, is used for all of a matrix";
    edits.extend(scaled::edits(scene, scaled::ALL, what, Misreading::FirstScale));
    edits
}

/// The largest magnitude of each row.
fn rows(x: &Tensor<f64>) -> Vec<f64> {
    let largest = |row: &[f64]| row.iter().fold(0.0f64, |m, x| m.max(x.abs())).max(f64::MIN_POSITIVE);
    x.data().chunks(x.row_len().max(1)).map(largest).collect()
}
