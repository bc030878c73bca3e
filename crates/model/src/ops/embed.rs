use crate::program::Axis;

/// `y[t] = weight[token[t]]`, `[T, d]`.
#[derive(Clone, Debug)]
pub struct Embed {
    /// The table, `[V, d]`.
    pub weight: String,
    /// Token ids.
    pub vocab: usize,
    /// Hidden size.
    pub dim: usize,
}

impl Embed {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![(&self.weight, vec![self.vocab, self.dim])]
    }
}
