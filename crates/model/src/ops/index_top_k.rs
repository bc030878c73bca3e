use crate::program::Axis;

/// The `k` entries of largest score among those that a token may see, best first, `[T, k]`; of equal
/// ones the first. Where there are fewer, the rest of the row is -1. A choice. Input: scores
/// `[T, entries]`.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexTopK {
    /// Entries chosen.
    pub k: usize,
    /// Tokens of a block.
    pub ratio: usize,
}

impl IndexTopK {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Choices(self.k)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
