//! What else than its own rows a cache may hold, for several hypotheses.

use std::ops::Range;

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::tools::Set;
use crate::{Edit, Scene};

/// Embeddings times value channels that are multiplied in search of tokens.
const SEARCHED: usize = 1 << 30;
/// Squared error over squared size at which two rows are still the same number up to rounding.
const CLOSE: f64 = 1e-4;

/// The caches in a segment, as sets that a bug may cover.
pub(super) fn caches(scene: &Scene) -> Vec<Set> {
    let (k, v) = (scene.find_tap("k_cache").is_some(), scene.find_tap("v_cache").is_some());
    let both = scene.taps.iter().any(|t| t == "k_cache") && scene.taps.iter().any(|t| t == "v_cache");
    let mut sets: Vec<Set> = Vec::new();
    if k && v || both {
        sets.push(("keys and values", |_| true));
    }
    if k && !both {
        sets.push(("keys", |tap| tap == "k_cache"));
    }
    if v && !both {
        sets.push(("values", |tap| tap == "v_cache"));
    }
    sets
}

/// Caches whose rows from `slot` on are those of other tokens from position `first` on, that nothing came
/// before: as recorded, where they are and are near to that.
pub(super) fn overwritten(
    scene: &Scene,
    detail: String,
    tokens: &[i64],
    first: u32,
    slot: usize,
) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::Cache(_))).is_none() {
        return vec![];
    }
    let Some(rows) = scene.forward(tokens, first, |op| matches!(op.kind, OpKind::Cache(_))) else {
        return vec![];
    };
    vec![Edit::new(detail).output(move |at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let rows = rows.get(&at.site.index)?;
        let recorded = at.recorded(at.site.index, at.site.step);
        let mut out = value.clone();
        for i in 0..rows.rows() {
            (slot + i < out.rows()).then_some(())?;
            // What rounding made of it on its way is in the recorded row.
            let own = recorded.as_ref().filter(|r| r.rows() > slot + i).map(|r| r.row(slot + i));
            let row = own.filter(|own| near(own, rows.row(i), 100.0 * CLOSE)).unwrap_or(rows.row(i));
            let start = (slot + i) * value.row_len();
            out.data_mut()[start..][..row.len()].copy_from_slice(row);
        }
        Some(out)
    })]
}

/// A block of a cache that holds other tokens.
pub(super) struct Block {
    pub slots: Range<usize>,
    pub tokens: Vec<i64>,
    /// The position of its first token.
    pub first: u32,
}

/// The tokens and positions whose keys and values the wrong rows of the first layer's cache are. In models
/// whose embedding is small enough to search.
pub(super) fn block(scene: &Scene) -> Option<Block> {
    let OpKind::Cache(cache) = &scene.alone()?.kind else { return None };
    let layer = firstdiff_trace::tap::split(&scene.program().ops[scene.op].tap).0?;
    (layer == 0).then_some(())?;
    let exact = scene.exact(scene.op).filter(|e| e.shape() == scene.engine.shape())?;
    let wrong = |&row: &usize| !near(scene.engine.row(row), exact.row(row), CLOSE);
    let rows: Vec<usize> = (0..exact.rows()).filter(wrong).collect();
    let slots = *rows.first()?..rows.last()? + 1;
    (rows.len() == slots.len() && rows.len() < exact.rows()).then_some(())?;
    let ops = &scene.program().ops;
    let find = |name: &str| ops.iter().position(|op| op.tap == format!("layers.0.{name}"));
    let (values, projection, rotated) = (find("v_cache")?, find("v_proj")?, find("k_rope")?);
    let stored = scene.recorded(values, scene.step).filter(|v| v.rows() == exact.rows())?;
    let hidden = scene.number("hidden_size")? as usize;
    let vocab = scene.program().vocab;
    (vocab.checked_mul(hidden)?.checked_mul(cache.heads * cache.dim)? <= SEARCHED).then_some(())?;
    let ids: Vec<i64> = (0..vocab as i64).collect();
    let all = scene.forward(&ids, 0, |op| op.tap == ops[projection].tap)?.remove(&projection)?;
    scene.may(10 * (slots.len() * all.len()) as u64).then_some(())?;
    let token = |row: usize| -> Option<i64> {
        let best = nearest(stored.row(row), &all)?;
        near(stored.row(row), all.row(best), CLOSE).then_some(best as i64)
    };
    let tokens: Vec<i64> = slots.clone().map(token).collect::<Option<_>>()?;
    // Where the keys agree too, their angles say the positions.
    let engine = |i: usize| scene.engine.row(slots.start + i);
    let first = (0..4 * exact.rows() as u32 + 64).find(|&first| {
        let keys = scene.forward(&tokens[..1], first, |op| op.tap == ops[rotated].tap);
        keys.and_then(|mut k| k.remove(&rotated)).is_some_and(|k| near(engine(0), k.row(0), CLOSE))
    })?;
    let keys = scene.forward(&tokens, first, |op| op.tap == ops[rotated].tap)?.remove(&rotated)?;
    (0..tokens.len()).all(|i| near(engine(i), keys.row(i), CLOSE)).then_some(Block { slots, tokens, first })
}

/// Caches whose rows in a block are what the engine holds: identified in the first layer, taken from there in
/// the others, whose rows follow from tokens that the trace does not have.
pub(super) fn overwritten_as_recorded(detail: String, block: Block) -> Vec<Edit> {
    let slots = block.slots;
    vec![Edit::new(detail).fitted(2 * slots.len()).output(move |at, _, value| {
        matches!(at.op().kind, OpKind::Cache(_)).then_some(())?;
        let recorded = at.recorded(at.site.index, at.site.step)?;
        (recorded.shape() == value.shape() && slots.end <= value.rows()).then_some(())?;
        let mut out = value.clone();
        let range = slots.start * value.row_len()..slots.end * value.row_len();
        out.data_mut()[range.clone()].copy_from_slice(&recorded.data()[range]);
        Some(out)
    })]
}

/// Whether two rows are the same up to a squared error of so many times their square.
pub(super) fn near(a: &[f64], b: &[f64], limit: f64) -> bool {
    let error: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    error <= limit * b.iter().map(|b| b * b).sum::<f64>()
}

/// The row that comes nearest.
fn nearest(row: &[f64], rows: &Tensor<f64>) -> Option<usize> {
    let error = |o: &usize| row.iter().zip(rows.row(*o)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    (0..rows.rows()).min_by(|a, b| error(a).total_cmp(&error(b)))
}
