//! # Bias of q, k or v not added
//!
//! The projections of queries, keys and values have biases in this model, and the engine adds none: not
//! loaded, zero-filled, or left out on one path.
//!
//! ## How it shows
//!
//! Every token is off by the same vector. Keys of Qwen2 have large biases: without them attention is lost,
//! and with them large queries and keys are no alarm.
//!
//! ## Seen in
//!
//! - EricLBuehler/candle-vllm#167
//! - sbryngelson/ANEForge#253
//! - ServiceNow/Fast-LLM#398
//! - intel/ipex-llm#10656
//!
//! ## Fix
//!
//! Load `q_proj.bias`, `k_proj.bias` and `v_proj.bias`, and check that what was loaded is not all zero.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    with_bias_times(scene, 0.0, "no bias is added")
}

/// Projections whose bias counts `factor` times: all of attention's, and each alone.
pub(super) fn with_bias_times(scene: &Scene, factor: f32, what: &str) -> Vec<Edit> {
    const NAMES: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
    let has_bias = |k: &OpKind| matches!(k, OpKind::Linear(l) if l.bias.is_some());
    let present: Vec<&'static str> = NAMES
        .into_iter()
        .filter(|name| scene.find(has_bias).is_some() && scene.find_tap(name).is_some_and(|(_, op)| has_bias(&op.kind)))
        .collect();
    let mut sets: Vec<Vec<&'static str>> = vec![];
    if !present.is_empty() {
        sets.push(NAMES.to_vec());
    }
    if present.len() > 1 {
        sets.extend(present.iter().map(|name| vec![*name]));
    }
    sets.into_iter()
        .map(|set| {
            let wrong: Vec<&str> = set.iter().copied().filter(|n| scene.taps.iter().any(|t| t == n)).collect();
            let names = if wrong.is_empty() { set.join(", ") } else { wrong.join(", ") };
            let biases: Vec<String> = scene
                .program()
                .ops
                .iter()
                .filter(|op| set.contains(&short(op)))
                .filter_map(|op| match &op.kind {
                    OpKind::Linear(l) => l.bias.clone(),
                    _ => None,
                })
                .collect();
            Edit::new(format!("{what} in {names}")).weight(move |w| {
                biases.iter().any(|b| b == w.name).then(|| w.values())?.map(|v| v.iter().map(|x| x * factor).collect())
            })
        })
        .collect()
}
