//! # Running sums not rescaled when the maximum rises
//!
//! Attention in one pass keeps a running maximum, and multiplies what it has summed by `exp(old - new)`
//! whenever the maximum rises. Here the factor is 1, often because the old maximum is overwritten before it
//! is used.
//!
//! ## How it shows
//!
//! Rows whose largest score is among the first keys are right; others give too much to what came before it.
//!
//! ## Seen in
//!
//! - paiml/aprender#2753
//!
//! ## Fix
//!
//! Keep the old maximum until both the sum and the accumulator are rescaled.

use super::masks::softmax;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for tile in [1, 4, 8, 16, 32, 64, 128] {
        let every = if tile == 1 { "a key".to_string() } else { format!("a tile of {tile} keys") };
        for denominator in [false, true] {
            let what = if denominator { "the accumulator alone is" } else { "running sums are" };
            let detail = format!("{what} not rescaled when {every} raises the maximum");
            edits.extend(softmax(scene, detail, move |_, lines, head, row| {
                let line = lines.line(head, row);
                let mut running = f64::NEG_INFINITY;
                let mut weights = vec![0.0; lines.keys];
                for start in (0..lines.keys).step_by(tile) {
                    let keys = start..(start + tile).min(lines.keys);
                    running = running.max(line.max(keys.clone()));
                    for k in keys.filter(|&k| line.seen[k]) {
                        weights[k] = (line.scores[k] - running).exp();
                    }
                }
                let sum = if denominator { line.sum(0..lines.keys, running) } else { weights.iter().sum() };
                weights.iter_mut().for_each(|w| *w /= sum);
                weights
            }));
        }
    }
    edits
}
