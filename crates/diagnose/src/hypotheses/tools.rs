//! What several hypotheses need.

use firstdiff_model::{OpKind, RopeFrequencies};
use firstdiff_tensor::Tensor;

use crate::scene::short;
use crate::{At, Edit, Scene};

/// A tensor whose element `i` comes from element `from(i)` of each run of `width` of the old one.
pub(super) fn gather(t: &Tensor<f64>, width: usize, from: impl Fn(usize) -> usize) -> Tensor<f64> {
    let mut out = t.clone();
    for (out, old) in out.data_mut().chunks_mut(width.max(1)).zip(t.data().chunks(width.max(1))) {
        for (i, x) in out.iter_mut().enumerate() {
            *x = old[from(i) % old.len()];
        }
    }
    out
}

/// What a set of operations is called in a detail, and which taps are of it.
pub(super) type Set = (&'static str, fn(&str) -> bool);

/// The rotations in a segment, as sets that a bug may cover: both, queries alone, keys alone.
pub(super) fn ropes(scene: &Scene) -> Vec<Set> {
    if scene.find(|k| matches!(k, OpKind::Rope(_))).is_none() {
        return vec![];
    }
    // Where only one of the two is in the segment, both edits are the same one.
    let (q, k) = (scene.find_tap("q_rope").is_some(), scene.find_tap("k_rope").is_some());
    let mut sets: Vec<Set> = vec![("", |_| true)];
    if q && k {
        sets.push((" (queries alone)", |tap| tap.starts_with("q_")));
        sets.push((" (keys alone)", |tap| tap.starts_with("k_")));
    }
    sets
}

/// Whether an edit is at a rotation of the set.
pub(super) fn at_rope(at: &At, set: fn(&str) -> bool) -> bool {
    matches!(at.op().kind, OpKind::Rope(_)) && set(at.tap())
}

/// Rotations with other frequencies.
pub(super) fn with_frequencies(
    scene: &Scene,
    detail: &str,
    parameters: usize,
    frequencies: &[f64],
) -> Vec<Edit> {
    let edit = |(which, set): (&str, fn(&str) -> bool)| {
        let frequencies = frequencies.to_vec();
        Edit::new(format!("{detail}{which}")).fitted(parameters).ops(move |op| {
            let tap = short(op).to_string();
            if let OpKind::Rope(rope) = &mut op.kind
                && set(&tap)
            {
                rope.frequencies = RopeFrequencies::Fixed(frequencies.clone());
            }
        })
    };
    ropes(scene).into_iter().map(edit).collect()
}

/// The rotation of the segment and the frequencies that the model has there.
pub(super) fn rotation(scene: &Scene) -> Option<(usize, Vec<f64>)> {
    let (index, op) = scene.find(|k| matches!(k, OpKind::Rope(_)))?;
    let OpKind::Rope(rope) = &op.kind else { return None };
    let last = scene.input().positions.iter().copied().max().unwrap_or(0);
    Some((index, rope.frequencies.at(last)))
}

/// `theta^(-2i/dim)` for each pair.
pub(super) fn plain(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect()
}

/// The angles by which each pair of channels `i`, `i + D/2` of a row was turned, from the value before and
/// after: `[row][pair]`, over all heads of a row. `None` unless the rotation stands alone.
pub(super) fn angles(scene: &Scene) -> Option<Vec<Vec<f64>>> {
    let op = scene.alone()?;
    let OpKind::Rope(rope) = &op.kind else { return None };
    let before = scene.value(op.inputs.first()?.0)?;
    let (pairs, dim) = (rope.dim / 2, rope.dim);
    let rows = before.data().chunks(rope.heads * dim).zip(scene.engine.data().chunks(rope.heads * dim));
    let angle = |x: &[f64], y: &[f64], i: usize| {
        let (mut dot, mut cross) = (0.0, 0.0);
        for head in 0..rope.heads {
            let (a, b) = (x[head * dim + i], x[head * dim + i + pairs]);
            let (c, d) = (y[head * dim + i], y[head * dim + i + pairs]);
            dot += a * c + b * d;
            cross += a * d - b * c;
        }
        cross.atan2(dot)
    };
    Some(rows.map(|(x, y)| (0..pairs).map(|i| angle(x, y, i)).collect()).collect())
}

/// Positions that explain the angles of a rotation that stands alone, row by row: the smallest one whose
/// angles are all right. `None` where a row has none up to `limit`.
pub(super) fn fitted_positions(scene: &Scene, limit: u32) -> Option<Vec<u32>> {
    let (_, frequencies) = rotation(scene)?;
    let angles = angles(scene)?;
    let fit = |angles: &Vec<f64>| {
        let error = |p: u32| -> f64 {
            frequencies.iter().zip(angles).map(|(f, a)| 1.0 - (f64::from(p) * f - a).cos()).sum()
        };
        (0..=limit).min_by(|&a, &b| error(a).total_cmp(&error(b)))
    };
    angles.iter().map(fit).collect()
}

/// Each query head's scores, or sums over values, from the key/value head that `map` gives it.
pub(super) fn heads_mapped(
    detail: String,
    map: impl Fn(usize, usize, usize) -> usize + Send + Sync + Copy + 'static,
) -> Edit {
    Edit::new(detail)
        .ops(|op| match &mut op.kind {
            OpKind::AttnScores(s) => s.kv_heads = s.heads,
            OpKind::AttnHeads(h) => h.kv_heads = h.heads,
            _ => {}
        })
        .input(move |at, number, value| {
            let (heads, dim) = match &at.op().kind {
                OpKind::AttnScores(s) => (s.heads, s.dim),
                OpKind::AttnHeads(h) => (h.heads, h.dim),
                _ => return None,
            };
            if number != 1 {
                return None;
            }
            let kv = value.row_len() / dim;
            let mut out = Vec::with_capacity(value.rows() * heads * dim);
            for row in 0..value.rows() {
                for head in 0..heads {
                    let from = map(head, heads, kv) % kv;
                    out.extend_from_slice(&value.row(row)[from * dim..][..dim]);
                }
            }
            Tensor::new([value.rows(), heads, dim], out).ok()
        })
}

/// The segment's attention heads and key/value heads, where it reads keys or values by head.
pub(super) fn grouping(scene: &Scene) -> Option<(usize, usize)> {
    let (_, op) = scene.find(|k| matches!(k, OpKind::AttnScores(_) | OpKind::AttnHeads(_)))?;
    match &op.kind {
        OpKind::AttnScores(s) => Some((s.heads, s.kv_heads)),
        OpKind::AttnHeads(h) => Some((h.heads, h.kv_heads)),
        _ => None,
    }
}

/// A number without needless digits.
pub(super) fn short_number(x: f64) -> String {
    if x != 0.0 && !(1e-3..1e7).contains(&x.abs()) {
        format!("{x:.3e}")
    } else {
        let text = format!("{x:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}
