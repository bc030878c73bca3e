use crate::program::Axis;

/// A pointwise activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x/2 (1 + erf(x/sqrt(2)))`.
    GeluErf,
    /// `x / (1 + exp(-1.702 x))`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// `x`.
    Identity,
}

impl Activation {
    /// The activation with this `hidden_act` spelling.
    pub fn from_name(name: &str) -> Option<Activation> {
        match name {
            "silu" | "swish" => Some(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Some(Activation::GeluTanh),
            _ => None,
        }
    }
}

/// A bound on what goes into a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// The bound.
    pub at: f64,
    /// What it bounds.
    pub gate: GateLimit,
}

/// How a gate is bounded; the other factor is bounded on both sides in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateLimit {
    /// From above, before the activation.
    Above,
    /// On both sides, before the activation.
    BothSides,
    /// From above, after the activation.
    Activated,
}

/// `y = act(gate) * up`, `[T, ffn]` (Shazeer, 2020, arXiv:2002.05202). Inputs: gate, up.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedAct {
    /// The activation.
    pub activation: Activation,
    /// What gate and up are cut off at.
    pub limit: Option<Limit>,
}

impl GatedAct {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
