//! # Another activation function
//!
//! The gated MLP uses another function than the model: gelu for silu, a sigmoid with factor 1.702, squared
//! relu, none.
//!
//! ## How it shows
//!
//! `mlp_act` is wrong everywhere, most where the gate is around -1 to -3. Cosine stays at 0.99 between silu
//! and gelu.
//!
//! ## Seen in
//!
//! - paiml/aprender#2096
//!
//! ## Fix
//!
//! Take `hidden_act` from the configuration.

use firstdiff_model::OpKind;
use firstdiff_model::ops::Activation;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::GatedAct(_))) else { return vec![] };
    let OpKind::GatedAct(act) = &op.kind else { return vec![] };
    let model = act.activation;
    let is_gelu = |a: Activation| matches!(a, Activation::GeluTanh | Activation::GeluErf);
    const ALL: [Activation; 7] = [
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::SquaredRelu,
        Activation::Identity,
    ];
    // gelu by erf for gelu by tanh is a class of its own.
    let other = ALL.into_iter().filter(|a| *a != model && !(is_gelu(*a) && is_gelu(model)));
    other.map(|a| with(format!("{} where the model has {}", name(a), name(model)), a)).collect()
}

/// The gated activation with another function.
pub(super) fn with(detail: String, activation: Activation) -> Edit {
    Edit::new(detail).ops(move |op| {
        if let OpKind::GatedAct(act) = &mut op.kind {
            act.activation = activation;
        }
    })
}

fn name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluErf => "gelu by erf",
        Activation::GeluTanh => "gelu by tanh",
        Activation::QuickGelu => "gate sigmoid(1.702 gate)",
        Activation::Relu => "relu",
        Activation::SquaredRelu => "squared relu",
        Activation::Identity => "no activation",
    }
}
