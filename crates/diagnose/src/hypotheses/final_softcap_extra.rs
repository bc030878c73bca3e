//! # Logits capped though the model has no cap
//!
//! Logits go through `c tanh(x / c)`, which another model of the engine has. Named with the cap that the
//! largest logit shows.
//!
//! ## How it shows
//!
//! No logit exceeds the cap. Small ones are right, large ones are too small; the best token stays.
//!
//! ## Seen in
//!
//! - ollama/ollama#9692
//!
//! ## Fix
//!
//! Cap only where `final_logit_softcapping` is set.

use super::tools::short_number;
use crate::{Edit, Scene};

const KNOWN: [f64; 4] = [30.0, 50.0, 15.0, 20.0];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.program().ops[scene.op].tap != "logits" {
        return vec![];
    }
    let mut edits: Vec<Edit> = KNOWN.iter().map(|&cap| edit(cap)).collect();
    if let Some(cap) = fitted(scene).filter(|cap| KNOWN.iter().all(|k| (cap / k - 1.0).abs() > 0.02)) {
        edits.push(edit(cap).fitted(1));
    }
    edits
}

fn edit(cap: f64) -> Edit {
    Edit::new(format!("logits go through {0} tanh(x / {0})", short_number(cap))).output(move |at, _, value| {
        (at.tap() == "logits").then_some(())?;
        let mut out = value.clone();
        out.data_mut().iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        Some(out)
    })
}

/// The cap that the largest logit shows.
fn fitted(scene: &Scene) -> Option<f64> {
    let exact = scene.exact(scene.op)?;
    let (x, y) = exact.data().iter().zip(scene.engine.data()).max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))?;
    let (x, y) = (x.abs(), y.abs());
    // `c tanh(x / c)` rises with c, from c itself to x.
    if !(y > 0.0 && y < 0.999 * x) {
        return None;
    }
    let (mut low, mut high) = (y, 1e3 * x);
    for _ in 0..100 {
        let middle = (low * high).sqrt();
        if middle * (x / middle).tanh() < y { low = middle } else { high = middle }
    }
    let whole = low.round();
    Some(if (low / whole - 1.0).abs() < 0.01 { whole } else { low })
}
