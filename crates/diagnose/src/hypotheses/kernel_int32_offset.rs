//! # An offset that overflows 32 bits
//!
//! Row times stride exceeds 2^31 in a 32-bit integer. Rows from some number on read as zero, or wrap to the
//! rows at the start.
//!
//! ## How it shows
//!
//! Right up to one token id or row, wrong from there on; the limit is 2^31 over the stride.
//!
//! ## Seen in
//!
//! - vllm-project/vllm#52109
//! - ROCm/aiter#4774
//! - vllm-project/vllm#50427
//! - vllm-project/vllm#47383
//!
//! ## Fix
//!
//! Compute offsets in 64 bits.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let op = &scene.program().ops[scene.op];
    match &op.kind {
        OpKind::Embed(_) => embedding(scene).into_iter().collect(),
        OpKind::Linear(_) if op.tap == "logits" => outputs(scene).into_iter().collect(),
        _ => vec![],
    }
}

/// Rows of the table from an id on read as zero.
fn embedding(scene: &Scene) -> Option<Edit> {
    let ids = &scene.input().token_ids;
    let zero = |row: usize| scene.engine.row(row).iter().all(|x| *x == 0.0);
    let limit = (0..ids.len()).filter(|&row| zero(row)).map(|row| ids[row]).min()?;
    if limit <= 0 || (0..ids.len()).any(|row| zero(row) != (ids[row] >= limit)) {
        return None;
    }
    let detail = format!("embedding rows from about id {limit} on read as zero");
    Some(Edit::new(detail).fitted(1).output(move |at, _, value| {
        (at.tap() == "embed").then_some(())?;
        let (mut out, width) = (value.clone(), value.row_len());
        for (row, id) in at.site.steps[at.site.step].token_ids.iter().enumerate() {
            if *id >= limit {
                out.data_mut()[row * width..][..width].fill(0.0);
            }
        }
        Some(out)
    }))
}

/// Logits from an id on are those of the start, or zero.
fn outputs(scene: &Scene) -> Option<Edit> {
    let exact = scene.exact(scene.op)?;
    let (engine, exact) = (scene.engine.row(0), exact.row(0));
    let size = (exact.iter().map(|y| y * y).sum::<f64>() / exact.len().max(1) as f64).sqrt();
    let near = |x: f64, y: f64| (x - y).abs() < 0.05 * size;
    let same = (0..exact.len()).take_while(|&i| near(engine[i], exact[i])).count();
    // Neighbours may agree by chance: the limit is near the first that does not.
    for limit in (same.saturating_sub(4)..=same).rev().filter(|l| *l > 0 && *l < exact.len()) {
        let wraps = (limit..exact.len()).all(|i| near(engine[i], exact[i % limit]));
        let zero = (limit..exact.len()).all(|i| engine[i] == 0.0);
        if !wraps && !zero {
            continue;
        }
        let detail = if zero { format!("logits from id {limit} on are zero") } else { format!("logits from id {limit} on are those from id 0 on") };
        return Some(Edit::new(detail).fitted(1).output(move |at, _, value| {
            (at.tap() == "logits").then_some(())?;
            let (mut out, width) = (value.clone(), value.row_len());
            for (row, out) in out.data_mut().chunks_mut(width).enumerate() {
                for (i, x) in out.iter_mut().enumerate().skip(limit) {
                    *x = if zero { 0.0 } else { value.row(row)[i % limit] };
                }
            }
            Some(out)
        }));
    }
    None
}
