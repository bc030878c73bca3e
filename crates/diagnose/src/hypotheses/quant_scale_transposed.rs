//! # The table of scales transposed
//!
//! Scales are a table of rows and blocks, and are read as blocks and rows; or rows were reordered and their
//! scales were not.
//!
//! ## How it shows
//!
//! Each block is off by a factor of its own. A square table passes every check of shapes.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#50727
//! - vllm-project/vllm#47116
//! - sgl-project/sglang#35703
//!
//! ## Fix
//!
//! Test with a table that is not square, and move scales with their rows.

use firstdiff_reference::Misreading;

use super::fits::of_matrices;
use super::quant::Blocks;
use super::scaled;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none() {
        let what = "the table of scales is read transposed";
        return scaled::edits(scene, scaled::ALL, what, Misreading::ScalesTransposed);
    }
    let mut edits = of_matrices(scene, "the table of scales is read transposed", move |w| {
        let blocks = Blocks::of_weight(w)?;
        Some(w.loaded(blocks.rearranged(w, |row, block, rows, _| block * rows + row)?))
    });
    edits.extend(of_matrices(scene, "the table of scales is stored transposed and read as it is", move |w| {
        let blocks = Blocks::of_weight(w)?;
        Some(w.loaded(blocks.rearranged(w, |row, block, rows, count| {
            let at = row * count + block;
            at % rows * count + at / rows
        })?))
    }));
    edits
}
