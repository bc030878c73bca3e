use crate::program::Axis;

/// What a table lists for each token id, `[T, k]`: a choice that no score decides. No input but the
/// tokens themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct TableChoice {
    /// The table of whole numbers, `[V, k]`.
    pub table: String,
    /// Token ids.
    pub vocab: usize,
    /// Entries for each.
    pub k: usize,
}

impl TableChoice {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Choices(self.k)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![(&self.table, vec![self.vocab, self.k])]
    }
}
