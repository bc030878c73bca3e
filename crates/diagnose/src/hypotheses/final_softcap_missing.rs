//! # Logits not capped
//!
//! The model bounds its logits by `cap tanh(x / cap)`, the engine leaves them as they are.
//!
//! ## How it shows
//!
//! The best token is the same, log probabilities are not: the largest logits are too large.
//!
//! ## Seen in
//!
//! - NVIDIA-NeMo/Megatron-Bridge#4610
//! - vllm-project/vllm#52173
//! - ggml-org/llama.cpp#21390
//!
//! ## Fix
//!
//! Read `final_logit_softcapping`.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::SoftCap(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("logits are not capped").output(|at, inputs, _| {
        matches!(at.op().kind, OpKind::SoftCap(_)).then(|| inputs.first().map(|x| (*x).clone()))?
    })]
}
