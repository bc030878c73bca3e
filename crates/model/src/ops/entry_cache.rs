use crate::program::Axis;

/// The compressed entries so far: those of earlier steps, then those that this step completes,
/// `[entries, 1, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryCache {
    /// Tokens of a block.
    pub ratio: usize,
    /// Channels of an entry.
    pub dim: usize,
}

impl EntryCache {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Entries(self.ratio), Axis::Heads(1), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
