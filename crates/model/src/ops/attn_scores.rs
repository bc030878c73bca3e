use crate::program::Axis;

/// `s[h, t, k] = scale * q[t, h] . key[k, h / (H / Hkv)]`, `[H, T, K]`, before the mask: grouped
/// query attention, in which consecutive query heads share a key head (Ainslie et al., 2023,
/// arXiv:2305.13245). Inputs: queries `[T, H, D]`, keys `[K, Hkv, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttnScores {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Head size.
    pub dim: usize,
    /// Factor on the products.
    pub scale: f64,
}

impl AttnScores {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Heads(self.heads), Axis::Tokens, Axis::Keys]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
