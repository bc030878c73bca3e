use crate::program::Axis;

/// Causal softmax over the keys, `[H, T, K]`. Key `k` is visible to row `t` when both belong to
/// the same sequence and `position[t] - window < position[k] <= position[t]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttnProbs {
    /// Query heads.
    pub heads: usize,
    /// Keys visible to a row, itself included; `None`: all earlier ones.
    pub window: Option<usize>,
}

impl AttnProbs {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
