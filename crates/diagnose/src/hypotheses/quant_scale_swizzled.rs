//! # Scales in the tiled order of tensor cores, read as if they were not
//!
//! Kernels want block scales in tiles of 128 rows and 4 columns; files have them row by row. Scales that were rearranged
//! for a kernel are read row by row by another one; or the file's go to the kernel without being rearranged.
//!
//! ## How it shows
//!
//! Each block of a matrix is off by the ratio of two scales: every row of the product is wrong, by no common factor. Where
//! tiles are larger than the table, some blocks are zero.
//!
//! ## Seen in
//!
//! - NVFP4 kernels whose runtime layout is swizzled while checkpoints are linear, with a slower kernel for shapes that the
//!   fast one does not take
//!
//! ## Fix
//!
//! Rearrange the scales once, when the weight is loaded, for the kernel that will run; keep the order with the tensor.

use firstdiff_reference::Misreading;

use super::scaled;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits =
        scaled::edits(scene, scaled::ALL, "scales in tiles are read row by row", Misreading::ScalesFlat);
    let what = "scales stored row by row are read in tiles";
    edits.extend(scaled::edits(scene, scaled::ALL, what, Misreading::ScalesSwizzled));
    edits
}
