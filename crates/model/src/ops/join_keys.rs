use crate::program::Axis;

/// What attention reads: the keys, then the compressed entries, `[candidates, 1, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinKeys {
    /// Tokens of a block.
    pub ratio: usize,
    /// Head size.
    pub dim: usize,
}

impl JoinKeys {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Candidates(self.ratio), Axis::Heads(1), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
