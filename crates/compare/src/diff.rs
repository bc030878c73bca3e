//! Two traces of the same tokens, without a model.

use firstdiff_tensor::{DType, Float};
use firstdiff_trace::{Trace, tap};
use serde::Serialize;

use crate::Error;

/// One tap of one step in both traces.
#[derive(Clone, Debug, Serialize)]
pub struct DiffRow {
    /// The step.
    pub step: usize,
    /// The tap.
    pub tap: String,
    /// Euclidean norm of the difference, relative to the first trace's value.
    pub rel_l2: f64,
    /// Largest difference.
    pub max_abs: f64,
    /// `rel_l2` in unit roundoffs of the coarser of the two formats.
    pub roundoffs: f64,
    /// How many times larger than the largest of the taps before it in this step.
    pub growth: f64,
}

/// The comparison of two traces.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// Whether every common value is equal bit for bit.
    pub identical: bool,
    /// The first value that differs by more than its own storage rounds.
    pub first: Option<DiffRow>,
    /// The largest jump from one tap to the next.
    pub jump: Option<DiffRow>,
    /// Every common value, in order.
    pub rows: Vec<DiffRow>,
    /// Taps that one of the traces lacks.
    pub only_in_one: Vec<String>,
    /// The first step after which the traces chose different tokens.
    pub first_other_token: Option<usize>,
}

/// Compares `a` and `b` tap by tap in `order` (program order where it is known, else by name).
///
/// Without a model nothing can be replayed, so an error upstream shows in everything after it;
/// the first tap that moved, and the largest jump, are where to look.
///
/// # Errors
/// When the traces are not of the same tokens, or a common tap has different element counts.
pub fn diff(a: &Trace, b: &Trace) -> Result<Diff, Error> {
    let mut rows: Vec<DiffRow> = Vec::new();
    let mut only = Vec::new();
    let mut first_other_token = None;
    for (s, (x, y)) in a.steps.iter().zip(&b.steps).enumerate() {
        if x.token_ids != y.token_ids {
            if let Some(previous) = s.checked_sub(1)
                && first_other_token.is_none()
            {
                first_other_token = Some(previous);
                break;
            }
            let at = x.token_ids.iter().zip(&y.token_ids).position(|(p, q)| p != q);
            let reason = match at {
                Some(i) => format!("token {i} is {} and {}", x.token_ids[i], y.token_ids[i]),
                None => format!("{} and {} tokens", x.rows(), y.rows()),
            };
            return Err(Error::Tokens { step: s, reason });
        }
        if first_other_token.is_none() && x.sampled.is_some() && y.sampled.is_some() && x.sampled != y.sampled
        {
            first_other_token = Some(s);
        }
        let mut names: Vec<&String> = x.taps().keys().collect();
        names.sort_by_key(|name| order(name));
        let mut largest = 0.0f64;
        for name in names {
            let Some(row) = compare(a, b, s, name)? else {
                let pattern = tap::pattern(name);
                if !only.contains(&pattern) {
                    only.push(pattern);
                }
                continue;
            };
            let growth = if largest > 0.0 { row.rel_l2 / largest } else { 0.0 };
            largest = largest.max(row.rel_l2);
            rows.push(DiffRow { growth, ..row });
        }
        for name in y.taps().keys().filter(|n| !x.taps().contains_key(*n)).map(|n| tap::pattern(n)) {
            if !only.contains(&name) {
                only.push(name);
            }
        }
    }
    // A value stored by rounding to nearest lies within one roundoff of the unrounded one: two of
    // them within two.
    let first = rows.iter().find(|r| r.roundoffs > 2.0).cloned();
    let jump =
        rows.iter().filter(|r| r.roundoffs > 2.0).max_by(|p, q| p.growth.total_cmp(&q.growth)).cloned();
    let identical = rows.iter().all(|r| r.max_abs == 0.0) && first_other_token.is_none();
    Ok(Diff { identical, first, jump, rows, only_in_one: only, first_other_token })
}

fn compare(a: &Trace, b: &Trace, step: usize, name: &str) -> Result<Option<DiffRow>, Error> {
    let (x, y) = (&a.steps[step], &b.steps[step]);
    let (Some(p), Some(q)) = (x.taps().get(name), y.taps().get(name)) else { return Ok(None) };
    let (Some(u), Some(v)) = (x.read::<f64>(name)?, y.read::<f64>(name)?) else { return Ok(None) };
    // The last rows alone may have been recorded, as with logits.
    let n = u.len().min(v.len());
    if n == 0 || u.len() % n != 0 || v.len() % n != 0 {
        let (found, expected) = (q.shape.clone(), p.shape.clone());
        return Err(Error::Shape { file: y.path().into(), tap: name.into(), found, expected });
    }
    let (u, v) = (&u.data()[u.len() - n..], &v.data()[v.len() - n..]);
    let (mut error, mut norm, mut max_abs) = (0.0, 0.0, 0.0f64);
    for (&x, &y) in u.iter().zip(v) {
        if x == y || x.is_nan() && y.is_nan() {
            norm += if x.is_finite() { x * x } else { 0.0 };
            continue;
        }
        let d = x - y;
        let d = if d.is_finite() { d } else { f64::MAX.sqrt() };
        error += d * d;
        norm += if x.is_finite() { x * x } else { 0.0 };
        max_abs = max_abs.max(d.abs());
    }
    let rel_l2 = if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() };
    let roundoff = format(p.dtype).unit_roundoff().max(format(q.dtype).unit_roundoff());
    let tap = name.to_string();
    Ok(Some(DiffRow { step, tap, rel_l2, max_abs, roundoffs: rel_l2 / roundoff, growth: 0.0 }))
}

fn format(dtype: DType) -> Float {
    match dtype {
        DType::F64 => Float::F64,
        DType::F16 => Float::F16,
        DType::BF16 => Float::BF16,
        _ => Float::F32,
    }
}

/// Execution order of the standard taps inside a layer.
const LAYER: [&str; 25] = [
    "attn_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "k_cache",
    "v_cache",
    "attn_scores",
    "attn_probs",
    "attn_heads",
    "attn_out",
    "attn_post_norm",
    "attn_resid",
    "mlp_norm",
    "router_logits",
    "router_topk",
    "gate_proj",
    "up_proj",
    "mlp_act",
    "mlp_out",
    "mlp_post_norm",
    "out",
];

fn order(name: &str) -> (usize, usize, usize, String) {
    let (layer, rest) = tap::split(name);
    let place = LAYER.iter().position(|t| *t == rest).unwrap_or(LAYER.len());
    let global = match (layer, rest) {
        (None, "embed") => 0,
        (Some(_), _) => 1,
        (None, "final_norm") => 2,
        (None, "logits") => 3,
        _ => 4,
    };
    (global, layer.unwrap_or(0), place, rest.to_string())
}
