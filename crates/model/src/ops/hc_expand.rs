use crate::program::Axis;

/// `Y[t, k] = p[t, k] a[t] + sum over j of M[t, j, k] X[t, j]`, `[T, n, d]`: a branch's result goes back
/// into the residual streams. Inputs: the result a `[T, d]`, p `[T, n]`, M `[T, n, n]`, X `[T, n, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HcExpand {
    /// Residual streams n.
    pub streams: usize,
    /// Hidden size.
    pub dim: usize,
}

impl HcExpand {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Heads(self.streams), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
