//! # A quantised cache read without its scale
//!
//! Keys or values are stored divided by a scale, and read without multiplying by it: the scale is taken to
//! be 1, or is not passed to one of the kernels.
//!
//! ## How it shows
//!
//! Keys or values, or attention's output, are off by one factor; in one path only, say in decode. With
//! values a cosine sees nothing.
//!
//! ## Seen in
//!
//! - sgl-project/sglang#18818
//! - sgl-project/sglang#20705
//! - flashinfer-ai/flashinfer#4979
//!
//! ## Fix
//!
//! Pass `k_scale` and `v_scale` to every kernel that reads the cache.

use firstdiff_model::OpKind;

use super::stored::caches;
use super::tools::{common_factor, fitted, short_number};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (which, set) in caches(scene) {
        let target = &scene.program().ops[scene.op];
        let alone = matches!(target.kind, OpKind::Cache(_));
        let values = which == "values";
        let factor = match (alone, values) {
            (true, _) => common_factor(scene),
            (false, true) => common_factor(scene),
            // Behind the softmax the factor of the keys has to be searched for.
            (false, false) if which == "keys" => fitted(scene, (1.0 / 128.0, 128.0), 56, |f| Some(scaled("", f, set))),
            _ => None,
        };
        let Some(factor) = factor.filter(|f| (f - 1.0).abs() > 0.01 && *f > 0.0) else { continue };
        // Scales are round in one direction or the other.
        let round = [factor, 1.0 / factor].map(|f| (f * 2.0).round() / 2.0);
        let factor = match round {
            [f, _] if f > 0.0 && (f / factor - 1.0).abs() < 3e-3 => f,
            [_, f] if f > 0.0 && (1.0 / f / factor - 1.0).abs() < 3e-3 => 1.0 / f,
            _ => factor,
        };
        edits.push(scaled(which, factor, set).fitted(1));
    }
    edits
}

fn scaled(which: &str, factor: f64, set: fn(&str) -> bool) -> Edit {
    Edit::new(format!("{which} are read times {}", short_number(factor))).output(move |at, _, value| {
        (matches!(at.op().kind, OpKind::Cache(_)) && set(at.tap())).then_some(())?;
        let mut out = value.clone();
        out.data_mut().iter_mut().for_each(|x| *x *= factor);
        Some(out)
    })
}
