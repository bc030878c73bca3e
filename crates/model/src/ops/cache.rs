use crate::program::Axis;

/// The keys (or values) of all tokens so far: those of earlier steps, then this step's, oldest
/// first. Output `[K, Hkv, D]`. The only operation with state.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// Key/value heads.
    pub heads: usize,
    /// Head size.
    pub dim: usize,
}

impl Cache {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Keys, Axis::Heads(self.heads), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
