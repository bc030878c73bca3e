use crate::program::Axis;

/// `o[t, h] = sum over k of p[h, t, k] * value[k, h / (H / Hkv)]`, `[T, H, D]`. Inputs:
/// probabilities `[H, T, K]`, values `[K, Hkv, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttnHeads {
    /// Query heads.
    pub heads: usize,
    /// Value heads.
    pub kv_heads: usize,
    /// Head size.
    pub dim: usize,
}

impl AttnHeads {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Heads(self.heads), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
