//! # Cosines laid out for the other pairing
//!
//! Tables of cosines and sines hold each angle twice: side by side for pairs `(2i, 2i + 1)`, or the whole
//! list twice for pairs `(i, i + D/2)`. Built for one and used with the other, the two channels of a pair
//! get different angles.
//!
//! ## How it shows
//!
//! Position 0 agrees. From position 1 on, pairs change their length, which no rotation does.
//!
//! ## Seen in
//!
//! - raiyanyahya/how-to-train-your-gpt#7
//! - PaddlePaddle/PaddleFleet#678
//!
//! ## Fix
//!
//! Build the table as the rotation that uses it takes its pairs.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::tools::{at_rope, ropes, table};
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (which, set) in ropes(scene) {
        for halves in [true, false] {
            let detail = match halves {
                true => "each angle stands twice in a row in the table, pairs are i and i + D/2",
                false => "the table repeats all its angles, pairs are 2i and 2i + 1",
            };
            edits.push(Edit::new(format!("{detail}{which}")).output(move |at, inputs, value| {
                at_rope(at, set).then(|| turned(at, inputs.first()?, value, halves)).flatten()
            }));
        }
    }
    edits
}

/// Rotated in halves with a table for neighbours, or the reverse.
fn turned(at: &At, x: &Tensor<f64>, value: &Tensor<f64>, halves: bool) -> Option<Tensor<f64>> {
    let OpKind::Rope(rope) = &at.op().kind else { return None };
    let (dim, half) = (rope.dim, rope.dim / 2);
    let table = table(x, value, dim);
    let mut out = value.clone();
    let width = x.row_len();
    for (row, out) in out.data_mut().chunks_mut(width).enumerate() {
        let x = x.row(row);
        for (c, out) in out.iter_mut().enumerate() {
            let (head, c) = (c / dim * dim, c % dim);
            let (pair, partner) = match halves {
                true if c < half => (c / 2, -x[head + c + half]),
                true => (c / 2, x[head + c - half]),
                false if c % 2 == 0 => (c % half, -x[head + c + 1]),
                false => (c % half, x[head + c - 1]),
            };
            let (cosine, sine) = table[row][pair];
            *out = x[head + c] * cosine + partner * sine;
        }
    }
    Some(out)
}
