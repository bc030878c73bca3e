use crate::program::Axis;

/// `X[t, j] = x[t]` for `count` residual streams, `[T, n, d]`: where hyper-connections begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Streams {
    /// Residual streams n.
    pub count: usize,
    /// Hidden size.
    pub dim: usize,
}

impl Streams {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Heads(self.count), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
