//! What each token sees, and the softmax over it.

use firstdiff_model::ops::{SinkProbs, VisibleKeys};
use firstdiff_tensor::{Real, Tensor};
use rayon::prelude::*;

use super::Rounding;
use crate::keys::{Entry, KeyLabel};

/// Which candidates each row sees, 1 or 0. `choice` lists entries by number, where they are chosen.
pub(crate) fn visible<T: Real>(
    rows: &[KeyLabel],
    keys: &[KeyLabel],
    entries: &[Entry],
    choice: Option<&Tensor<T>>,
    op: &VisibleKeys,
) -> Vec<T> {
    let ratio = op.ratio.unwrap_or(1);
    let mut out = Vec::with_capacity(rows.len() * (keys.len() + entries.len()));
    let flag = |seen: bool| if seen { T::ONE } else { T::ZERO };
    for (t, row) in rows.iter().enumerate() {
        out.extend(keys.iter().map(|key| {
            let own = key.sequence == row.sequence && key.position <= row.position;
            flag(own && ((row.position - key.position) as usize) < op.window)
        }));
        let chosen = choice.map(|c| if t < c.rows() { c.row(t) } else { &[] });
        out.extend(entries.iter().enumerate().map(|(number, entry)| {
            let picked = chosen.is_none_or(|c| c.iter().any(|&x| x.to_f64() == number as f64));
            flag(picked && entry.is_seen_by(row, ratio))
        }));
    }
    out
}

/// Softmax over the visible candidates and the head's sink. Errs as the softmax without sink does.
pub(crate) fn probabilities<T: Real>(
    scores: &Tensor<T>,
    visible: &Tensor<T>,
    op: &SinkProbs,
    sinks: Option<&[T]>,
    r: Rounding,
) -> Vec<T> {
    let (rows, width) = (scores.shape()[1], scores.shape()[2]);
    let mut out = vec![T::ZERO; scores.len()];
    if rows == 0 || width == 0 {
        return out;
    }
    // The mask of the last rows and of the last candidates: an engine may hold fewer.
    let (all_rows, all) = (visible.rows(), visible.row_len());
    let mask = |row: usize, i: usize| {
        let (row, i) = (row + all_rows.saturating_sub(rows), i + all.saturating_sub(width));
        visible.data().get(row * all + i).is_some_and(|v| *v > T::ZERO)
    };
    let exponent = r.site(1);
    let lines = out.par_chunks_mut(width).zip(scores.data().par_chunks(width)).enumerate();
    lines.with_min_len(4).for_each(|(line, (out, scores))| {
        let (head, row) = (line / rows, line % rows);
        let sink = sinks.and_then(|s| s.get(head % op.heads)).copied();
        let seen = |i: usize| mask(row, i);
        let mut max = sink.unwrap_or(T::NEG_INFINITY);
        for (i, s) in scores.iter().enumerate() {
            if *s > max && seen(i) {
                max = *s;
            }
        }
        let erring = |x: T, at: usize| {
            let argument = exponent.factor(x.to_f64().abs(), at);
            x.exp() * T::from_f64(argument * exponent.lean(2.0, 0))
        };
        let mut sum = sink.map_or(T::ZERO, |s| erring(s - max, out.len() * rows * op.heads + line));
        for (i, (p, s)) in out.iter_mut().zip(scores).enumerate() {
            if seen(i) {
                *p = erring(*s - max, line * width + i);
                sum = r.add(sum, *p);
            }
        }
        let scale = T::from_f64(r.positive_sum(width + 1, line) / sum.to_f64());
        out.iter_mut().for_each(|p| *p *= scale);
    });
    out
}
