use crate::program::Axis;

/// `y = W x + b`, `[T, out]`, with `W` stored `[out, in]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The matrix, `[out, in]`.
    pub weight: String,
    /// The bias, `[out]`.
    pub bias: Option<String>,
    /// Input features; every axis of the input after the first counts.
    pub input: usize,
    /// Output features.
    pub output: usize,
}

impl Linear {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Channels(self.output)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        let mut weights = vec![(self.weight.as_str(), vec![self.output, self.input])];
        weights.extend(self.bias.as_deref().map(|bias| (bias, vec![self.output])));
        weights
    }
}
