//! # A race in shared memory
//!
//! A barrier between writing a row's maximum or sum and reading it is missing, and some rows are normalised
//! by another row's numbers. Or a stage of a pipeline is filled again while it is still read.
//!
//! ## How it shows
//!
//! The same input gives other values from run to run. Some rows of some heads are off by one factor each,
//! the ratio of two rows' sums; which rows are hit varies. Or rows of the cache are read as something else in one
//! step, in some heads: the step before and the step after have them right, so memory holds what it should.
//!
//! ## Seen in
//!
//! - ikawrakow/ik_llama.cpp#1649
//! - JustVugg/colibri#1098
//! - ggml-org/llama.cpp#13469
//! - warpfront/hipfire#575
//!
//! ## Fix
//!
//! Put the barrier between the last write and the first read, reached by every thread; check with a race
//! detector. Where a bulk copy fills what was read, an arrival on a barrier does not order the reads before it: that
//! takes a fence between the two proxies, after the last use of what was read.

use std::collections::BTreeSet;

use firstdiff_model::{Axis, Op, OpKind};
use firstdiff_tensor::Tensor;

use super::masks::softmax;
use super::stored::near;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    normalised_by_others(scene).into_iter().chain(filled_while_read(scene)).collect()
}

/// Rows of a cache that are wrong in one step alone, in some of their heads.
fn filled_while_read(scene: &Scene) -> Option<Edit> {
    let op = scene.alone()?;
    let exact = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape())?;
    let recorded = |step: usize| scene.recorded(scene.op, step);
    let wrong = lost(op, exact, scene.step, scene.input().positions.len(), recorded)?;
    // A whole row in place of another one was looked for in the wrong place.
    let moved = |row: usize| (0..exact.rows()).any(|o| o != row && near(scene.engine.row(row), exact.row(o), 1e-4));
    let [_, Axis::Heads(heads), Axis::Channels(dim)] = *op.axes else { return None };
    (!wrong.iter().all(|(row, hit)| hit.len() == heads && moved(*row))).then_some(())?;
    let (first, last) = (wrong.first()?.0, wrong.last()?.0);
    let hit: BTreeSet<usize> = wrong.iter().flat_map(|(_, heads)| heads.iter().copied()).collect();
    let rows = match wrong.len() {
        1 => format!("row {first}"),
        n if n == last - first + 1 => format!("rows {first} to {last}"),
        n => format!("{n} of rows {first} to {last}"),
    };
    let detail = format!(
        "in one step {rows} of heads {hit:?} of {heads} read as something else; the step before and the step after have \
         them right"
    );
    // What was read is nobody's to predict: it is taken from the engine, wherever it is gone in the next step.
    let fitted = wrong.iter().map(|(_, heads)| heads.len() * dim).sum();
    Some(Edit::new(detail).fitted(fitted).output(move |at, _, value| {
        let recorded = |step: usize| at.recorded(at.site.index, step);
        let engine = recorded(at.site.step)?;
        let mut read = value.clone();
        for (row, heads) in lost(at.op(), value, at.site.step, at.rows().positions.len(), recorded)? {
            for start in heads.iter().map(|head| row * value.row_len() + head * dim) {
                read.data_mut()[start..][..dim].copy_from_slice(&engine.data()[start..][..dim]);
            }
        }
        Some(read)
    }))
}

/// The rows of a cache in a step that were read as something else, and the heads in which: they are wrong in this step, and
/// right in the one before and the one after. `None` where that is not all that is wrong. `exact` is what should have been
/// read, `new` the number of rows written in this step.
fn lost(
    op: &Op,
    exact: &Tensor<f64>,
    step: usize,
    new: usize,
    recorded: impl Fn(usize) -> Option<Tensor<f64>>,
) -> Option<Vec<(usize, Vec<usize>)>> {
    let (OpKind::Cache(_), [_, Axis::Heads(_), Axis::Channels(dim)]) = (&op.kind, op.axes.as_slice()) else {
        return None;
    };
    let old = exact.rows().checked_sub(new)?;
    let engine = recorded(step).filter(|e| e.shape() == exact.shape())?;
    let before = recorded(step.checked_sub(1)?).filter(|b| b.rows() == old && b.row_len() == exact.row_len())?;
    let after = recorded(step + 1).filter(|a| a.rows() > old && a.row_len() == exact.row_len())?;
    let differ = |row: usize| -> Vec<usize> {
        let heads = engine.row(row).chunks(*dim).zip(exact.row(row).chunks(*dim)).enumerate();
        heads.filter(|(_, (x, y))| !near(x, y, 1e-4)).map(|(head, _)| head).collect()
    };
    let wrong: Vec<(usize, Vec<usize>)> =
        (0..exact.rows()).map(|row| (row, differ(row))).filter(|(_, heads)| !heads.is_empty()).collect();
    // The newest rows may have been read before they were written; and what is wrong in most rows is no race.
    (wrong.last()?.0 < old && 2 * wrong.len() <= old).then_some(())?;
    let right = |row: usize| [&before, &after].iter().all(|step| near(step.row(row), exact.row(row), 1e-4));
    wrong.iter().all(|(row, _)| right(*row)).then_some(wrong)
}

/// Rows whose weights were divided by another row's sum.
fn normalised_by_others(scene: &Scene) -> Vec<Edit> {
    // Which rows are hit has to be seen, head by head.
    if !matches!(scene.program().ops[scene.op].kind, OpKind::AttnHeads(_)) {
        return vec![];
    }
    let Some(exact) = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape()) else { return vec![] };
    let [_, heads, dim] = *exact.shape() else { return vec![] };
    let hit = |x: &[f64], y: &[f64]| {
        let error: f64 = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum();
        error > 1e-4 * y.iter().map(|y| y * y).sum::<f64>()
    };
    let lines = scene.engine.data().chunks(dim).zip(exact.data().chunks(dim));
    let wrong = lines.filter(|(x, y)| hit(x, y)).count();
    // What is wrong everywhere is no race.
    if wrong == 0 || 2 * wrong > exact.rows() * heads {
        return vec![];
    }
    let mut edits = Vec::new();
    let neighbours = [("row before", 0, -1), ("row after", 0, 1), ("head before", -1, 0), ("head after", 1, 0)];
    for (from_max, (what, heads_on, rows_on)) in [false, true].into_iter().flat_map(|m| neighbours.map(|n| (m, n))) {
        let detail = format!("{wrong} of {} rows are normalised by the sum of the {what}", exact.rows() * heads);
        edits.extend(softmax(scene, detail, move |at, lines, head, row| {
            let sum = |head: usize, row: usize| {
                let line = lines.line(head, row);
                let max = if from_max { line.max(0..lines.keys) } else { 0.0 };
                (max, line.sum(0..lines.keys, max))
            };
            let (line, (max, own)) = (lines.line(head, row), sum(head, row));
            let on = |i: usize, by: i64, n: usize| (i as i64 + by).rem_euclid(n as i64) as usize;
            let other = sum(on(head, heads_on, lines.heads()), on(row, rows_on, lines.rows)).1;
            let weight =
                |k: usize, sum: f64| if line.seen[k] { (line.scores[k] - max).exp() / sum } else { 0.0 };
            let (right, wrong): (Vec<f64>, Vec<f64>) =
                (0..lines.keys).map(|k| (weight(k, own), weight(k, other))).unzip();
            let hit = hit_here(at, head, row, &right, own / other);
            if hit { wrong } else { right }
        }));
    }
    // Which rows are hit is read off: a yes or no for each.
    edits.into_iter().map(|e| e.fitted(exact.rows() * heads)).collect()
}

/// Whether the engine's row is nearer to its right value times `factor` than to the right one.
fn hit_here(at: &crate::At, head: usize, row: usize, weights: &[f64], factor: f64) -> bool {
    let index = at.site.index + 1;
    let (Some(engine), Some(values)) = (at.recorded(index, at.site.step), values(at, index)) else { return false };
    let [_, heads, dim] = *engine.shape() else { return false };
    let group = heads * dim / values.row_len().max(1);
    let start = head / group.max(1) * dim;
    let keys = weights.len();
    let first = values.rows().saturating_sub(keys);
    let (mut plain, mut scaled) = (0.0, 0.0);
    for c in 0..dim {
        let y: f64 = (0..keys).map(|k| weights[k] * values.row(first + k)[start + c]).sum();
        let x = engine.row(row)[head * dim + c];
        plain += (x - y) * (x - y);
        scaled += (x - y * factor) * (x - y * factor);
    }
    scaled < plain
}

/// The values that the sums are over.
fn values(at: &crate::At, heads: usize) -> Option<Tensor<f64>> {
    // The cache of values lies three places before the sums: cache, scores, probabilities, sums.
    at.recorded(heads.checked_sub(3)?, at.site.step)
}
