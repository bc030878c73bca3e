//! # Parts of attention merged with wrong weights
//!
//! Attention over long contexts is computed in parts of the keys that are merged by the logarithms of their
//! sums. Here the logarithms are in another base, scaled, of another head, or not used.
//!
//! ## How it shows
//!
//! Right as long as all keys fit into one part, wrong in every longer row.
//!
//! ## Seen in
//!
//! - HKUSTDial/flash-sparse-attention#106
//! - vllm-project/flash-attention#87
//! - flashinfer-ai/flashinfer#58
//! - vllm-project/vllm#39001 (probably)
//!
//! ## Fix
//!
//! Give the base of each logarithm with it, and merge as `sum of exp(lse_s - lse) o_s`; index them by head
//! and row like the parts.

use std::f64::consts::LN_2;

use super::masks::softmax;
use crate::{Edit, Scene};

/// How parts are weighed.
#[derive(Clone, Copy)]
enum Merge {
    /// By the logarithms of their sums, times a factor.
    Factor(f64),
    /// All alike.
    Equal,
    /// Not at all: added up.
    Added,
    /// By those of another head: heads in reverse, the next one, or as if heads and rows were exchanged.
    Mirrored,
    NextHead,
    Transposed,
    /// By their largest scores alone.
    Maxima,
    /// The last one alone.
    Last,
}

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let merges = [
        (Merge::Factor(1.0 / LN_2), "with e^x of logarithms in base 2"),
        (Merge::Factor(LN_2), "with 2^x of natural logarithms"),
        (Merge::Equal, "all alike"),
        (Merge::Added, "without weights"),
        (Merge::Mirrored, "with the weights of the mirrored head"),
        (Merge::NextHead, "with the weights of the next head"),
        (Merge::Transposed, "with weights that lie [T, H] and are read [H, T]"),
        (Merge::Maxima, "by their maxima alone"),
        (Merge::Last, "by taking the last one"),
    ];
    let keys = firstdiff_reference::visible_keys(&scene.steps()[..=scene.step]).pop().unwrap_or(0);
    let mut edits = Vec::new();
    // Where probabilities are recorded, attention is not computed in parts.
    if matches!(scene.program().ops[scene.op].kind, firstdiff_model::OpKind::AttnProbs(_)) {
        return edits;
    }
    for split in super::masks::TILES.into_iter().chain([512, 1024]).filter(|s| *s >= 8 && *s < keys) {
        for (merge, how) in merges {
            let detail = format!("parts of {split} keys are merged {how}");
            edits.extend(softmax(scene, detail, move |_, lines, head, row| {
                let line = lines.line(head, row);
                let parts: Vec<_> =
                    (0..lines.keys).step_by(split).map(|s| s..(s + split).min(lines.keys)).collect();
                let lse = |head: usize, row: usize, part: &std::ops::Range<usize>| {
                    let line = lines.line(head, row);
                    let max = line.max(part.clone());
                    if max == f64::NEG_INFINITY { max } else { max + line.sum(part.clone(), max).ln() }
                };
                let own: Vec<f64> = parts.iter().map(|p| lse(head, row, p)).collect();
                let of = |head: usize, row: usize| -> Vec<f64> { parts.iter().map(|p| lse(head, row, p)).collect() };
                let some = own.iter().filter(|x| x.is_finite()).count().max(1) as f64;
                let merged: Vec<f64> = match merge {
                    Merge::Factor(f) => normalised(own.iter().map(|x| x * f).collect()),
                    Merge::Equal => own.iter().map(|x| if x.is_finite() { 1.0 / some } else { 0.0 }).collect(),
                    Merge::Added => own.iter().map(|x| if x.is_finite() { 1.0 } else { 0.0 }).collect(),
                    Merge::Mirrored => normalised(of(lines.heads() - 1 - head, row)),
                    Merge::NextHead => normalised(of((head + 1) % lines.heads(), row)),
                    Merge::Transposed => {
                        let flat = head * lines.rows + row;
                        normalised(of(flat % lines.heads(), flat / lines.heads()))
                    }
                    Merge::Maxima => normalised(parts.iter().map(|p| line.max(p.clone())).collect()),
                    Merge::Last => {
                        let last = own.iter().rposition(|x| x.is_finite()).unwrap_or(0);
                        (0..own.len()).map(|i| if i == last { 1.0 } else { 0.0 }).collect()
                    }
                };
                let mut weights = vec![0.0; lines.keys];
                for ((part, weight), lse) in parts.iter().zip(merged).zip(&own) {
                    for k in part.clone().filter(|&k| line.seen[k]) {
                        weights[k] = weight * (line.scores[k] - lse).exp();
                    }
                }
                weights
            }));
        }
    }
    edits
}

fn normalised(logs: Vec<f64>) -> Vec<f64> {
    let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|x| (x - max).exp()).sum();
    logs.into_iter().map(|x| (x - max).exp() / sum).collect()
}
