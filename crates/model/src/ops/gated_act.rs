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

/// `y = act(gate) * up`, `[T, ffn]` (Shazeer, 2020, arXiv:2002.05202). Inputs: gate, up.
#[derive(Clone, Debug)]
pub struct GatedAct {
    /// The activation.
    pub activation: Activation,
    /// The gate is cut off above this before the activation, up beyond it on both sides.
    pub limit: Option<f64>,
}

impl GatedAct {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
