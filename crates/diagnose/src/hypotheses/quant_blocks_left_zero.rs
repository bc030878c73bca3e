//! # Only the first blocks are decoded
//!
//! The decoder returns too early: after the first block of a row, or of the matrix, the rest stays zero.
//!
//! ## How it shows
//!
//! Products are those of a matrix whose later columns are zero.
//!
//! ## Seen in
//!
//! - 1bit-MONSTER/1bit-MONSTER#488
//!
//! ## Fix
//!
//! Decode a whole row in a test, and compare its last element.

use super::fits::{of_matrices, runs, summed};
use super::quant::Blocks;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some(blocks) = Blocks::of(scene) else { return vec![] };
    // Whole blocks of each row, as the values show them.
    let mut firsts = vec![1, 256 / blocks.len];
    let mut fitted = None;
    if let Some(kept) = summed(scene) {
        let channels = 8 * kept.iter().take_while(|kept| **kept).count();
        if !runs(&kept).contains(',') && channels > 0 && channels.is_multiple_of(blocks.len) {
            fitted = Some(channels / blocks.len).filter(|first| !firsts.contains(first));
            firsts.extend(fitted);
        }
    }
    firsts.sort_unstable();
    firsts.dedup();
    firsts
        .into_iter()
        .flat_map(|first| {
            let detail = format!("of each row only the first {} weights are decoded, the rest is zero", first * blocks.len);
            of_matrices(scene, &detail, move |w| {
                let &[_, width] = w.shape else { return None };
                let kept = first * blocks.len;
                let keep = |(i, w): (usize, &f32)| if i % width < kept { *w } else { 0.0 };
                (kept < width).then(|| Some(w.values()?.iter().enumerate().map(keep).collect())).flatten()
            })
            .into_iter()
            .map(move |edit| edit.fitted(usize::from(fitted == Some(first))))
        })
        .collect()
}
