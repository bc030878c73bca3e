use crate::program::Axis;

/// `y = w * x / sqrt(mean(x^2) + eps)`, or with `1 + w`, over the last `dim` channels (Zhang and Sennrich, 2019,
/// arXiv:1910.07467). With `heads`, each head is normalised on its own with the same weight.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// The weight, `[dim]`.
    pub weight: String,
    /// Added to the mean square.
    pub eps: f64,
    /// Channels normalised together.
    pub dim: usize,
    /// Number of heads; the output is then `[T, heads, dim]`.
    pub heads: Option<usize>,
    /// How the weight is applied.
    pub form: NormForm,
}

/// How a norm applies its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormForm {
    /// The normalised value is stored, then multiplied by `w` (Llama, Qwen).
    Stored,
    /// Normalised and multiplied by `w`, then stored.
    Once,
    /// Normalised and multiplied by `1 + w`, then stored (Gemma).
    OnePlus,
}

impl RmsNorm {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        let mut axes = vec![Axis::Tokens];
        axes.extend(self.heads.map(Axis::Heads));
        axes.push(Axis::Channels(self.dim));
        axes
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![(&self.weight, vec![self.dim])]
    }
}
