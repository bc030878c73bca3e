//! # Signed codes read in the other encoding
//!
//! Codes are stored plus 8 and are read as two's complement, or the other way round: the upper bit has the
//! other meaning. Or bytes of a signed type hold pairs of 4-bit floats (DeepSeek-V4's experts are stored as I8): extended with
//! their sign, they fill the bytes above them with ones.
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

use firstdiff_reference::Misreading;

use super::fits::of_matrices;
use super::quant::Blocks;
use super::scaled;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none_or(|b| b.nibbles.is_none()) {
        let mut edits = Vec::new();
        for (what, how) in [
            ("bytes are extended with their sign when they are put together", Misreading::SignExtended),
            ("4-bit floats are taken for whole numbers in two's complement", Misreading::TwosComplement),
        ] {
            edits.extend(scaled::edits(scene, scaled::FOUR_BITS, what, how));
        }
        return edits;
    }
    of_matrices(scene, "codes stored plus 8 are read as two's complement", move |w| {
        let blocks = Blocks::of_weight(w)?;
        let (start, count) = blocks.nibbles?;
        let values = blocks.edited(w, |block| block[start..start + count].iter_mut().for_each(|b| *b ^= 0x88))?;
        Some(w.loaded(values))
    })
}
