//! # Scales of another block
//!
//! Each block of codes has a scale, and the kernel takes its neighbour's: a lane that maps to the wrong
//! block, or packed scales unpacked in the wrong order. Weights may be hit, or the activations that they
//! are multiplied with.
//!
//! ## How it shows
//!
//! Sums over two blocks have exchanged factors; where all scales are alike nothing is wrong.
//!
//! ## Seen in
//!
//! - paiml/aprender#1924
//! - paiml/aprender#2115
//!
//! ## Fix
//!
//! Test with blocks of very different scales, none of them zero.

use firstdiff_model::OpKind;
use firstdiff_tensor::{Float, Tensor};

use super::fits::of_matrices;
use super::quant::Blocks;
use crate::{Edit, Scene};

/// Which block's scale a block takes, of so many in a row.
type Order = fn(usize, usize) -> usize;

const ORDERS: [(&str, Order); 4] = [
    ("each block of weights takes the scale of its neighbour in the pair", |i, n| if i ^ 1 < n { i ^ 1 } else { i }),
    ("each block of weights takes the next one's scale", |i, n| (i + 1) % n),
    ("each block of weights takes the scale of the one before", |i, n| (i + n - 1) % n),
    ("blocks of weights take their row's scales in reverse", |i, n| n - 1 - i),
];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none() {
        return vec![];
    }
    let mut edits = Vec::new();
    for (what, order) in ORDERS {
        edits.extend(of_matrices(scene, what, move |w| {
            let blocks = Blocks::of_weight(w)?;
            Some(w.loaded(blocks.rearranged(w, |row, block, _, count| row * count + order(block, count))?))
        }));
    }
    let detail = "each block of activations takes the scale of the neighbour in the pair";
    edits.push(Edit::new(detail).input(|at, _, x| {
        matches!(at.op().kind, OpKind::Linear(_)).then(|| exchanged(x))
    }));
    edits
}

/// Blocks of 32 as 8-bit codes, each times the scale of the other one of its pair.
fn exchanged(x: &Tensor<f64>) -> Tensor<f64> {
    let (mut out, width) = (x.clone(), x.row_len());
    for (out, x) in out.data_mut().chunks_mut(width).zip(x.data().chunks(width)) {
        let scale = |block: &[f64]| block.iter().fold(0.0f64, |m, x| m.max(x.abs())) / 127.0;
        let scales: Vec<f64> = x.chunks(32).map(scale).collect();
        for (i, (out, x)) in out.chunks_mut(32).zip(x.chunks(32)).enumerate() {
            let other = Float::F16.round(*scales.get(i ^ 1).unwrap_or(&scales[i]));
            for (out, x) in out.iter_mut().zip(x) {
                *out = if scales[i] > 0.0 { (x / scales[i]).round() * other } else { 0.0 };
            }
        }
    }
    out
}
