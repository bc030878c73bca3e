use crate::program::Axis;

/// Which candidates each token sees, 1 or 0, `[T, candidates]`: keys of its own sequence in the window
/// (`position - window < key's position <= position`), then compressed entries whose block is complete
/// at this token (`(e + 1) ratio <= position + 1`), all of them or the chosen ones. Inputs: what
/// attention reads; the choice `[T, k]`, where entries are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct VisibleKeys {
    /// Keys that a token sees, its own included.
    pub window: usize,
    /// Tokens of a block; `None`: there are no entries.
    pub ratio: Option<usize>,
}

impl VisibleKeys {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, self.ratio.map_or(Axis::Keys, Axis::Candidates)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
