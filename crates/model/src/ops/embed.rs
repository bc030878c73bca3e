use crate::program::Axis;

/// `y[t] = scale weight[token[t]]`, `[T, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// The table, `[V, d]`.
    pub weight: String,
    /// Token ids.
    pub vocab: usize,
    /// Hidden size.
    pub dim: usize,
    /// Factor on every row, rounded to the format that weights are held in; 1: none.
    pub scale: f64,
}

impl Embed {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![(&self.weight, vec![self.vocab, self.dim])]
    }
}
