//! # The first chunk attends over the whole prompt's keys
//!
//! A prompt is fed in chunks, and the first one is given the length of the whole prompt: it attends over
//! keys and values that are not written yet.
//!
//! ## How it shows
//!
//! The first chunk is wrong, in a way that depends on what the cache held before: zeros in a fresh one.
//! Later chunks are right.
//!
//! ## Seen in
//!
//! - GeeeekExplorer/nano-vllm#213
//!
//! ## Fix
//!
//! Give attention the number of keys that are cached when it runs.

use firstdiff_reference::KeyLabel;

use super::masks::more_keys;
use crate::{At, Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.input().positions.len() < 2 || missing(scene.steps(), scene.step) == 0 {
        return vec![];
    }
    let mut edits = more_keys(scene, "the whole prompt's keys are seen, those not yet written as zeros", zeros, |at| {
        let more = missing(at.site.steps, at.site.step);
        let sequence = at.rows().sequence.first().copied().unwrap_or(0);
        vec![KeyLabel { sequence, position: 0 }; more]
    });
    // Rows are counted from the end of the keys: the chunk is taken to be the last one.
    for edit in more_keys(scene, "the mask is that of the prompt's last chunk, keys not yet written are zeros", zeros, |at| {
        let more = missing(at.site.steps, at.site.step);
        let (sequence, last) = (at.rows().sequence.first().copied().unwrap_or(0), at.rows().positions.last().copied().unwrap_or(0));
        (1..=more as u32).map(|i| KeyLabel { sequence, position: last + i }).collect()
    }) {
        edits.push(edit.positions(|at, positions| {
            if matches!(at.op().kind, firstdiff_model::OpKind::AttnProbs(_)) {
                let more = missing(at.site.steps, at.site.step) as u32;
                positions.iter_mut().for_each(|p| *p += more);
            }
        }));
    }
    edits
}

fn zeros(at: &At, _which: usize, value: &firstdiff_tensor::Tensor<f64>) -> Option<Vec<f64>> {
    Some(vec![0.0; missing(at.site.steps, at.site.step) * value.row_len()])
}

/// How many tokens of the prompt come in later chunks.
fn missing(steps: &[firstdiff_reference::StepInput], step: usize) -> usize {
    let later = steps.iter().skip(step + 1);
    later.take_while(|s| s.positions.len() > 1 && s.positions[0] > 0).map(|s| s.positions.len()).sum()
}
