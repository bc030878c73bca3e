//! What several hypotheses need.

use std::collections::BTreeMap;

use firstdiff_model::ops::{Limit, Pool};
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

/// Positions that are tried one by one when angles are fitted, beside those of the trace and near to them: as far as
/// most models' contexts go. Farther ones are found where they lie near a position that the trace has.
const POSITIONS: u32 = 1 << 17;
/// So far around positions of the trace others are tried.
const AROUND: u32 = 1 << 10;

/// Positions that explain the angles of a rotation that stands alone, row by row: the smallest one whose
/// angles are all right. `None` where a row has none up to `limit`. What is tried does not grow with the positions
/// themselves, which a trace may hold as large as it likes.
pub(super) fn fitted_positions(scene: &Scene, limit: u32) -> Option<Vec<u32>> {
    let (_, frequencies) = rotation(scene)?;
    let angles = angles(scene)?;
    let tried = tried_positions(scene.steps().iter().flat_map(|s| s.positions.iter().copied()), limit);
    let work = [angles.len(), tried.len(), frequencies.len(), 200].iter().map(|&n| n as u64).product();
    scene.may(work).then_some(())?;
    let fit = |angles: &Vec<f64>| {
        let error = |p: u32| -> f64 {
            frequencies.iter().zip(angles).map(|(f, a)| 1.0 - (f64::from(p) * f - a).cos()).sum()
        };
        tried.iter().copied().min_by(|&a, &b| error(a).total_cmp(&error(b)))
    };
    angles.iter().map(fit).collect()
}

/// The positions to try up to `limit`, in order.
fn tried_positions(recorded: impl Iterator<Item = u32>, limit: u32) -> Vec<u32> {
    let mut tried: Vec<u32> = (0..=limit.min(POSITIONS)).collect();
    if limit > POSITIONS {
        let beyond: std::collections::BTreeSet<u32> =
            recorded.filter(|p| p.saturating_add(AROUND) > POSITIONS).collect();
        // Of a long sequence the first and the last: the others lie between them, and are tried themselves.
        let ends = [beyond.first(), beyond.last()].into_iter().flatten();
        tried.extend(ends.flat_map(|&p| p.saturating_sub(AROUND)..=p.saturating_add(AROUND)));
        tried.extend(beyond.iter().take(1 << 16));
        tried.retain(|&p| p <= limit);
        tried.sort_unstable();
        tried.dedup();
    }
    tried
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

/// Every norm's weight off by a number, where there is a norm in the segment.
pub(super) fn norms_plus(scene: &Scene, detail: &str, offset: f32) -> Vec<Edit> {
    let is_norm = |k: &OpKind| matches!(k, OpKind::RmsNorm(_));
    if scene.find(is_norm).is_none() {
        return vec![];
    }
    let ops = scene.program().ops.iter().filter(|op| is_norm(&op.kind));
    let norms: Vec<String> =
        ops.flat_map(|op| op.kind.weights().into_iter().map(|(name, _)| name.to_string())).collect();
    vec![Edit::new(detail).weight(move |w| {
        let values = norms.iter().any(|n| n == w.name).then(|| w.values())??;
        Some(values.iter().map(|w| w + offset).collect())
    })]
}

/// What an engine makes of the bound on gate and up.
pub(super) type Change = fn(&mut Option<Limit>);

/// Another bound on gate and up, in the experts of the segment: in all, and in routed or shared ones alone.
pub(super) fn bounded(scene: &Scene, ways: &[(&str, Change)]) -> Vec<Edit> {
    let routed = scene.find(|k| matches!(k, OpKind::Experts(e) if e.limit.is_some())).is_some();
    let shared = scene.find(|k| matches!(k, OpKind::GatedAct(act) if act.limit.is_some())).is_some();
    if !routed && !shared {
        return vec![];
    }
    let edit = |what: &str, change: Change, both: bool| {
        let which = match both {
            true => "",
            false if shared => " (shared expert alone)",
            false => " (routed experts alone)",
        };
        Edit::new(format!("{what}{which}")).ops(move |op| match &mut op.kind {
            OpKind::Experts(experts) if both || routed => change(&mut experts.limit),
            OpKind::GatedAct(act) if both || shared => change(&mut act.limit),
            _ => {}
        })
    };
    ways.iter().flat_map(|&(what, change)| [true, false].map(|both| edit(what, change, both))).collect()
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

/// Cosines and sines of each row and pair, read off a rotated value: in a random execution with what rounding
/// made of them there, which a table computed anew would not have. `[row][pair]`.
pub(super) fn table(x: &Tensor<f64>, rotated: &Tensor<f64>, dim: usize) -> Vec<Vec<(f64, f64)>> {
    let half = dim / 2;
    let row = |row: usize| {
        let heads = || x.row(row).chunks(dim).zip(rotated.row(row).chunks(dim));
        let pair = |i: usize| {
            let (mut cosine, mut sine, mut square) = (0.0, 0.0, 0.0);
            for (x, y) in heads() {
                cosine += x[i] * y[i] + x[i + half] * y[i + half];
                sine += x[i] * y[i + half] - x[i + half] * y[i];
                square += x[i] * x[i] + x[i + half] * x[i + half];
            }
            if square > 0.0 { (cosine / square, sine / square) } else { (1.0, 0.0) }
        };
        (0..half).map(pair).collect()
    };
    (0..x.rows()).map(row).collect()
}

/// The one factor between the engine's value and the model's, where whatever follows attention's output keeps
/// factors; `None` where it does not, or is none.
pub(super) fn common_factor(scene: &Scene) -> Option<f64> {
    let keeps = match &scene.program().ops[scene.op].kind {
        OpKind::AttnHeads(_) | OpKind::Cache(_) => true,
        OpKind::Linear(linear) => linear.bias.is_none(),
        _ => false,
    };
    let exact = scene.exact(scene.op).filter(|e| keeps && e.shape() == scene.engine.shape())?;
    let pairs = || scene.engine.data().iter().zip(exact.data());
    let dot: f64 = pairs().map(|(x, y)| x * y).sum();
    let square: f64 = pairs().map(|(_, y)| y * y).sum();
    let factor = dot / square;
    (square > 0.0 && factor.is_finite() && factor != 0.0).then_some(factor)
}

/// Golden sections: each leaves 0.618 of the interval.
const SECTIONS: usize = 40;

/// The number, between `low` and `high`, whose edit comes nearest to the engine's value: the best of
/// `count` on a logarithmic grid, then golden sections.
pub(super) fn fitted(
    scene: &Scene,
    (low, high): (f64, f64),
    count: usize,
    edit: impl Fn(f64) -> Option<Edit>,
) -> Option<f64> {
    let error = |log: f64| -> f64 {
        let Some(value) = edit(log.exp()).and_then(|e| scene.under(&e)) else { return f64::INFINITY };
        if value.len() != scene.engine.len() {
            return f64::INFINITY;
        }
        let error: f64 = value.data().iter().zip(scene.engine.data()).map(|(x, y)| (x - y) * (x - y)).sum();
        if error.is_finite() { error } else { f64::INFINITY }
    };
    let example = edit(low)?;
    scene.may_execute(count + 1 + 2 * SECTIONS, &example).then_some(())?;
    let (low, step) = (low.ln(), (high.ln() - low.ln()) / count as f64);
    let grid = (0..=count).map(|i| low + i as f64 * step).map(|x| (error(x), x));
    let (_, best) = grid.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let (mut a, mut b) = (best - step, best + step);
    for _ in 0..SECTIONS {
        let (c, d) = (b - (b - a) * 0.618_034, a + (b - a) * 0.618_034);
        if error(c) < error(d) { b = d } else { a = c }
    }
    Some(((a + b) / 2.0).exp())
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

/// A number of the rotary settings of layers with compressed keys, in either spelling.
pub(super) fn compressed_rope(scene: &Scene, key: &str) -> Option<f64> {
    let config = scene.model.checkpoint.config();
    let nested = config.get("rope_parameters").and_then(|p| p.get("compress"));
    let scaling = nested.or_else(|| config.get("rope_scaling")).or_else(|| config.get("rope_parameters"));
    scaling?.get(key)?.as_f64()
}

/// The position biases of compressors, by name, with the channels of an entry.
pub(super) struct Apes {
    pub all: BTreeMap<String, usize>,
}

/// Those of the program, where the segment has a compressor that `pick` takes.
pub(super) fn apes(scene: &Scene, pick: fn(&Pool) -> bool) -> Apes {
    let taken = |k: &OpKind| matches!(k, OpKind::Pool(pool) if pick(pool));
    if scene.find(taken).is_none() {
        return Apes { all: BTreeMap::new() };
    }
    let pools = scene.program().ops.iter().filter_map(|op| match &op.kind {
        OpKind::Pool(pool) if pick(pool) => Some((pool.ape.clone(), pool.dim)),
        _ => None,
    });
    Apes { all: pools.collect() }
}

/// A mask over keys and compressed entries, to change.
pub(super) struct Mask<'a> {
    mask: &'a mut Tensor<f64>,
    positions: &'a [u32],
    /// Keys; the rest are entries.
    keys: usize,
    ratio: usize,
}

impl Mask<'_> {
    /// Sets what is seen of the entries, from a row's position, the entry's number, its tokens, and what was.
    pub fn entries(&mut self, f: impl Fn(usize, usize, usize, bool) -> bool) {
        let (keys, width) = (self.keys, self.mask.row_len());
        self.columns(keys..width, |position, column, m, now| f(position, column - keys, m, now));
    }

    /// Likewise for the keys, by position.
    pub fn keys(&mut self, f: impl Fn(usize, usize, usize, bool) -> bool) {
        self.columns(0..self.keys, f);
    }

    fn columns(&mut self, columns: std::ops::Range<usize>, f: impl Fn(usize, usize, usize, bool) -> bool) {
        let width = self.mask.row_len().max(1);
        for (row, &position) in self.mask.data_mut().chunks_mut(width).zip(self.positions) {
            for column in columns.clone() {
                if let Some(x) = row.get_mut(column) {
                    *x = f64::from(u8::from(f(position as usize, column, self.ratio, *x > 0.0)));
                }
            }
        }
    }
}

/// Other masks of layers with compressed entries, where the segment has one.
pub(super) fn visible_keys(scene: &Scene, detail: &str, f: fn(&mut Mask)) -> Vec<Edit> {
    let masked = |k: &OpKind| matches!(k, OpKind::VisibleKeys(seen) if seen.ratio.is_some());
    if scene.find(masked).is_none() {
        return vec![];
    }
    vec![Edit::new(detail).output(move |at, _, value| {
        let OpKind::VisibleKeys(seen) = &at.op().kind else { return None };
        let mut mask = value.clone();
        let positions = &at.site.steps[at.site.step].positions;
        let keys = at.site.kept + positions.len();
        f(&mut Mask { mask: &mut mask, positions, keys, ratio: seen.ratio? });
        Some(mask)
    })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_that_are_tried_do_not_grow_with_those_of_the_trace() {
        let all = tried_positions(0..200, 864);
        assert_eq!(all, (0..=864).collect::<Vec<_>>(), "of a short trace all are");
        let far = [100_000_000, 100_000_001, u32::MAX];
        let tried = tried_positions(far.into_iter(), u32::MAX);
        assert!(tried.len() < 1 << 18, "{}", tried.len());
        for near in [100_000_000, 100_000_000 - 24, 100_000_002, u32::MAX] {
            assert!(tried.binary_search(&near).is_ok(), "{near}");
        }
        assert!(tried.is_sorted());
    }
}
