//! # Two codes of a byte in the wrong places
//!
//! A byte holds two 4-bit codes. Which elements they are differs between formats: neighbours, or one of
//! each half of the block; low bits first, or high ones.
//!
//! ## How it shows
//!
//! Sorted, the weights of a block are right. Often in one kernel alone.
//!
//! ## Seen in
//!
//! - kekzl/imp#722
//! - paiml/aprender#2127
//!
//! ## Fix
//!
//! Decode one block with 32 different codes in a test.

use firstdiff_reference::Misreading;

use super::fits::of_matrices;
use super::quant::Blocks;
use super::scaled;
use crate::{Edit, Scene};

/// The code that stands for element `i`, of bytes whose two codes are `run` apart.
type Order = fn(usize, usize) -> usize;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if Blocks::of(scene).is_none_or(|b| b.nibbles.is_none()) {
        let mut edits = Vec::new();
        for (what, how) in [
            ("the high code of each byte comes first", Misreading::HighNibbleFirst),
            ("a byte's two codes are taken from the two halves of a block", Misreading::SplitHalves),
        ] {
            edits.extend(scaled::edits(scene, scaled::FOUR_BITS, what, how));
        }
        return edits;
    }
    let orders: [(&str, Order); 3] = [
        ("a byte's two codes are taken as neighbours", |i, run| i / 2 + i % 2 * run),
        ("the high code of each byte comes first", |i, run| (i + run) % (2 * run)),
        ("a byte's two codes are taken as neighbours, high one first", |i, run| i / 2 + (i + 1) % 2 * run),
    ];
    orders
        .into_iter()
        .flat_map(|(what, from)| {
            of_matrices(scene, what, move |w| {
                let blocks = Blocks::of_weight(w)?;
                let (start, count) = blocks.nibbles?;
                // Codes of so many bytes are one run: low ones first, then high ones.
                let run = if blocks.len == 32 { 16 } else { 32 };
                let values = blocks.edited(w, |block| {
                    for bytes in block[start..start + count].chunks_exact_mut(run) {
                        let codes: Vec<u8> = bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4)).collect();
                        for (i, byte) in bytes.iter_mut().enumerate() {
                            *byte = codes[from(i, run)] | codes[from(i + run, run)] << 4;
                        }
                    }
                })?;
                Some(w.loaded(values))
            })
        })
        .collect()
}
