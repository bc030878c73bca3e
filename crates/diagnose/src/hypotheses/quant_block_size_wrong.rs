//! # Scales are applied to blocks of another size
//!
//! The kernel's block is not the checkpoint's: 128 where the configuration has 32, or 32 elements of a row where the format
//! has 16.
//!
//! ## How it shows
//!
//! The first block is right; those after it take their neighbours' scales.
//!
//! ## Seen in
//!
//! - kernels with blocks of 128 x 128 built in, given a checkpoint whose `weight_block_size` is 32 x 32
//!
//! ## Fix
//!
//! Take the block's size from `weight_block_size`, or from the format; never from the kernel.

use firstdiff_reference::Misreading;

use super::scaled;
use crate::{Edit, Scene};

/// Sizes that kernels have.
const SIZES: [usize; 5] = [16, 32, 64, 128, 256];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let of = |size| {
        let what = format!("blocks of {size} share a scale");
        scaled::edits(scene, scaled::ALL, &what, Misreading::Block(size))
    };
    SIZES.into_iter().flat_map(of).collect()
}
