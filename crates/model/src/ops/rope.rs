use crate::program::Axis;
use crate::rope::RopeFrequencies;

/// Rotary position embedding (Su et al., 2021, arXiv:2104.09864), half-split: channels `i` and
/// `i + D/2` of a head are a pair, turned by `position * frequency[i]`, then multiplied by
/// `amplitude`. Output `[T, heads, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Heads.
    pub heads: usize,
    /// Head size D.
    pub dim: usize,
    /// Angle per position of each of the D/2 pairs.
    pub frequencies: RopeFrequencies,
    /// Factor on cos and sin (yarn's attention factor; 1 otherwise).
    pub amplitude: f64,
}

impl Rope {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Heads(self.heads), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
