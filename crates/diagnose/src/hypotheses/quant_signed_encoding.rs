//! # Signed codes read in the other encoding
//!
//! Codes are stored plus 8 and are read as two's complement, or the other way round: the upper bit has the
//! other meaning.
//!
//! ## How it shows
//!
//! Weights are off by eight scales, up or down, for codes of either half.
//!
//! ## Seen in
//!
//! - 1bit-MONSTER/1bit-MONSTER#572
//!
//! ## Fix
//!
//! Subtract the offset where the format stores one; extend the sign where it does not.

use super::fits::of_matrices;
use super::quant::Blocks;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none_or(|b| b.nibbles.is_none()) {
        return vec![];
    }
    of_matrices(scene, "codes stored plus 8 are read as two's complement", move |w| {
        let blocks = Blocks::of_weight(w)?;
        let (start, count) = blocks.nibbles?;
        let values = blocks.edited(w, |block| block[start..start + count].iter_mut().for_each(|b| *b ^= 0x88))?;
        Some(w.loaded(values))
    })
}
