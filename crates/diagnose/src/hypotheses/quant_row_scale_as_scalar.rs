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
use firstdiff_model::ops::Slice;
use firstdiff_reference::Misreading;
use firstdiff_tensor::Tensor;

use super::inplace_aliasing::activated;
use super::scaled;
use crate::edit::At;
use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let ops = scene.ops.iter().map(|&i| &scene.program().ops[i]);
    let mut edits: Vec<Edit> = ops.filter_map(|op| match &op.kind {
        OpKind::Linear(_) => Some(product(short(op).to_string())),
        OpKind::Experts(_) => Some(mixture()),
        _ => None,
    }).collect();
    let what = "one scale, the first, is used for all of a matrix";
    edits.extend(scaled::edits(scene, scaled::ALL, what, Misreading::FirstScale));
    edits
}

/// A matrix product.
fn product(name: String) -> Edit {
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
}

/// A mixture of experts, whose kernel takes one number for each expert: that of the first row which goes there.
fn mixture() -> Edit {
    Edit::new("each expert uses its first row's scale for every row").output(|at, inputs, value| {
        let (OpKind::Experts(op), &[x, chosen, weights]) = (&at.op().kind, inputs) else { return None };
        let rows_of = |of: &Tensor<f64>| of.rows() == value.rows() && of.row_len() > 0;
        if ![x, chosen, weights].into_iter().all(rows_of) || x.row_len() != op.dim || op.limit.is_some() {
            return None;
        }
        let largest = rows(x);
        let mut sums = [(); 2].map(|()| Tensor::zeros([value.rows(), op.dim]));
        for (number, expert) in op.experts.iter().enumerate() {
            let to = |i: &usize| chosen.data()[*i] == number as f64;
            let uses: Vec<usize> = (0..chosen.data().len()).filter(to).collect();
            let Some(first) = uses.first().map(|i| largest[i / chosen.row_len()]) else { continue };
            let [gate, up, down] = [&expert.gate, &expert.up, &expert.down].map(|slice| matrix(at, slice));
            let (gate, up, down) = (gate?, up?, down?);
            for i in uses {
                let row = i / chosen.row_len();
                let (gate, up) = (gate.times(x.row(row)), up.times(x.row(row)));
                let weight = *weights.data().get(i)?;
                for (sums, factor) in sums.iter_mut().zip([1.0, first / largest[row]]) {
                    let inner = gate.iter().zip(&up);
                    let inner = inner.map(|(g, u)| Some(activated(op.activation, g * factor)? * u * factor));
                    let y = down.times(&inner.collect::<Option<Vec<f64>>>()?);
                    let sums = &mut sums.data_mut()[row * op.dim..][..op.dim];
                    sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += y * weight);
                }
            }
        }
        let [right, mut out] = sums;
        // What rounding does inside is in the value, and grows as the row does.
        let size = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        for row in 0..value.rows() {
            let grown = size(out.row(row)) / size(right.row(row));
            let rounded = value.row(row).iter().zip(right.row(row)).map(|(v, r)| (v - r) * grown);
            let sums = &mut out.data_mut()[row * op.dim..][..op.dim];
            sums.iter_mut().zip(rounded).for_each(|(sum, rounded)| *sum += rounded);
        }
        Some(out)
    })
}

/// A matrix of an expert, row by row.
struct Matrix {
    values: std::sync::Arc<Vec<f32>>,
    first: usize,
    rows: usize,
    width: usize,
}

fn matrix(at: &At, slice: &Slice) -> Option<Matrix> {
    let (values, width) = (at.weight(&slice.tensor)?, *slice.shape.last()?);
    let fits = (slice.first + slice.rows) * width <= values.len();
    fits.then_some(Matrix { values, first: slice.first, rows: slice.rows, width })
}

impl Matrix {
    fn times(&self, x: &[f64]) -> Vec<f64> {
        let part = &self.values[self.first * self.width..][..self.rows * self.width];
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        part.chunks(self.width.max(1)).map(dot).collect()
    }
}

/// The largest magnitude of each row.
fn rows(x: &Tensor<f64>) -> Vec<f64> {
    let largest = |row: &[f64]| row.iter().fold(0.0f64, |m, x| m.max(x.abs())).max(f64::MIN_POSITIVE);
    x.data().chunks(x.row_len().max(1)).map(largest).collect()
}
