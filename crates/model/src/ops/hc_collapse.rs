use crate::program::Axis;

/// `y[t] = sum over j of w[t, j] X[t, j]`, `[T, d]`: what a branch is given of the residual streams.
/// Inputs: weights `[T, n]`, streams `[T, n, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HcCollapse {
    /// Hidden size.
    pub dim: usize,
}

impl HcCollapse {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
