//! # A row of a batch is another row's
//!
//! In a batch, some rows hold what belongs to others, or nothing that is finite: a stride or index that is
//! right for the first row alone.
//!
//! ## How it shows
//!
//! The first row is right. Sent alone, every request is.
//!
//! ## Seen in
//!
//! - tenstorrent/tt-xla#5940
//!
//! ## Fix
//!
//! Send the same prompt several times in one batch: all rows must agree.

use std::collections::BTreeSet;

use super::fits::sources;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let sequence = &scene.input().sequence;
    let all: BTreeSet<i64> = sequence.iter().copied().collect();
    if all.len() < 2 || scene.engine.rows() != sequence.len() {
        return vec![];
    }
    let index = scene.op;
    let tap = crate::scene::short(&scene.program().ops[index]).to_string();
    // Nothing finite in whole sequences, everything in the others.
    let lost = |row: &[f64]| row.iter().all(|x| !x.is_finite());
    let clean = |row: &[f64]| row.iter().all(|x| x.is_finite());
    let rows = || sequence.iter().enumerate().map(|(row, s)| (scene.engine.row(row), *s));
    let gone: BTreeSet<i64> = rows().filter(|(row, _)| lost(row)).map(|(_, s)| s).collect();
    if !gone.is_empty() {
        if gone == all || !rows().all(|(row, s)| if gone.contains(&s) { lost(row) } else { clean(row) }) {
            return vec![];
        }
        let detail = format!("rows of {} of {} sequences are not finite, and the others are right", gone.len(), all.len());
        return vec![Edit::new(detail).fitted(1).lost(move |at, value| {
            (at.tap() == tap).then_some(())?;
            let sequence = &at.site.steps[at.site.step].sequence;
            Some(sequence.iter().flat_map(|s| vec![gone.contains(s); value.row_len()]).collect())
        })];
    }
    let Some(sources) = sources(scene) else { return vec![] };
    let moved: Vec<(usize, usize)> = sources.iter().copied().enumerate().filter(|(a, b)| a != b).collect();
    if moved.iter().any(|&(row, from)| sequence[row] == sequence[from]) {
        return vec![];
    }
    let (row, from) = moved[0];
    let detail = format!("row {row} is row {from}'s; {} of {} rows are another sequence's", moved.len(), sources.len());
    vec![Edit::new(detail).fitted(moved.len()).output(move |at, _, value| {
        (at.tap() == tap && value.rows() == sources.len()).then_some(())?;
        let (mut out, width) = (value.clone(), value.row_len());
        for (row, &from) in sources.iter().enumerate() {
            out.data_mut()[row * width..][..width].copy_from_slice(value.row(from));
        }
        Some(out)
    })]
}
