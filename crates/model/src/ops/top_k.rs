use crate::program::Axis;

/// The `k` candidates of largest score for each token, best first, `[T, k]`; of equal ones the
/// first. A choice: its values are numbers of candidates. Where there are fewer candidates than `k`,
/// the rest of the row is -1. Input: scores `[T, candidates]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// Candidates chosen.
    pub k: usize,
    /// Added to the scores for choosing only, `[candidates]`.
    pub bias: Option<String>,
    /// Candidates there are.
    pub candidates: usize,
}

impl TopK {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Choices(self.k)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        self.bias.iter().map(|bias| (bias.as_str(), vec![self.candidates])).collect()
    }
}
