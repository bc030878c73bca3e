//! # gelu by erf where the model has the tanh formula
//!
//! gelu has an exact form and an approximation by tanh. The model was trained with one, the engine uses the
//! other.
//!
//! ## How it shows
//!
//! No element is off by more than 0.0005: invisible in f16 and below for most, and to every cosine.
//!
//! ## Seen in
//!
//! - kyutai-labs/pocket-tts#278
//! - Blaizzy/mlx-embeddings#81
//! - NVIDIA-NeMo/Megatron-Bridge#4661
//! - huggingface/candle#900
//!
//! ## Fix
//!
//! `gelu_pytorch_tanh` and `gelu_new` are the tanh formula, `gelu` is the exact one.

use firstdiff_model::OpKind;
use firstdiff_model::ops::Activation;

use super::act_wrong_fn::with;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let tanh = |k: &OpKind| matches!(k, OpKind::GatedAct(a) if a.activation == Activation::GeluTanh);
    if scene.find(tanh).is_none() {
        return vec![];
    }
    vec![with("gelu by erf where the model has the tanh formula".into(), Activation::GeluErf)]
}
