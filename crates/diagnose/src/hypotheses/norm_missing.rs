//! # A norm inside attention is not applied
//!
//! A head's or a compressed entry's norm is left out.
//!
//! ## How it shows
//!
//! The norm's output is its input: another size for each row, and, where the norm has a weight, each channel off by that.
//!
//! ## Seen in
//!
//! - ports of Qwen3 and DeepSeek-V4 that skip the norm of queries or keys
//!
//! ## Fix
//!
//! Apply every norm that the model has; one without a weight is still a norm.

use std::collections::BTreeSet;

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let ops = scene.ops.iter().map(|&i| &scene.program().ops[i]);
    let norms: BTreeSet<String> =
        ops.filter(|op| matches!(op.kind, OpKind::WideNorm(_))).map(|op| short(op).to_string()).collect();
    let mut sets: Vec<(String, BTreeSet<String>)> =
        norms.iter().map(|n| (format!("{n} is its input"), BTreeSet::from([n.clone()]))).collect();
    // A model's two compressors share their code.
    let both: BTreeSet<String> = ["comp_norm", "index_norm"].map(String::from).into();
    if norms.iter().any(|n| both.contains(n)) {
        sets.insert(0, ("entries are not normalised".into(), both));
    }
    sets.into_iter()
        .map(|(detail, names)| {
            Edit::new(detail).output(move |at, inputs, value| {
                if !matches!(at.op().kind, OpKind::WideNorm(_)) || !names.contains(at.tap()) {
                    return None;
                }
                (*inputs.first()?).clone().reshape(value.shape().to_vec()).ok()
            })
        })
        .collect()
}
