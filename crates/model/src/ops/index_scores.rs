use crate::program::Axis;

/// How well each compressed entry suits each token: `I[t, e] = sum over h of w[t, h] H^(-1/2) D^(-1/2)
/// max(0, q[t, h] . k[e])`, `[T, entries]`, before the mask. Inputs: q `[T, H, D]`, w `[T, H]`, the
/// indexer's entries `[entries, 1, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexScores {
    /// Heads H.
    pub heads: usize,
    /// Head size D.
    pub dim: usize,
    /// Tokens of a block.
    pub ratio: usize,
    /// Negative products count as zero; else they count as they are.
    pub relu: bool,
}

impl IndexScores {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Entries(self.ratio)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
