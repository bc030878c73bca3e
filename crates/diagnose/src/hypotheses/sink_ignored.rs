//! # The attention sink is not in the denominator
//!
//! Each head has a sink: one number more under the softmax, which takes its share of probability and gives no value. The engine
//! divides by the sum over the keys alone.
//!
//! ## How it shows
//!
//! Rows of probabilities sum to 1 where they should sum to less. Each head's output is too large by one factor a token;
//! its direction is right, so a cosine for each head is 1.
//!
//! ## Seen in
//!
//! - vllm-project/vllm-metal#550
//! - sgl-project/sglang-jax#905
//! - a DeepSeek-V4 kernel set: the sink was reserved for later
//!
//! ## Fix
//!
//! Add `exp(sink - max)` to the denominator, and let the sink take part in the maximum. It is not scaled.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::SinkProbs(probs) if probs.sink.is_some())).is_none() {
        return vec![];
    }
    vec![Edit::new("softmax over the keys alone").ops(|op| {
        if let OpKind::SinkProbs(probs) = &mut op.kind {
            probs.sink = None;
        }
    })]
}
