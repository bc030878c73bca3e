use crate::program::Axis;
use crate::rope::RopeFrequencies;

/// Rotary position embedding of the last `rotated` channels of each head; neighbouring channels are a
/// pair. The rows are tokens, or compressed entries, which turn by the position of their first token.
#[derive(Clone, Debug)]
pub struct TailRope {
    /// What the rows are.
    pub rows: Axis,
    /// Heads.
    pub heads: usize,
    /// Head size.
    pub dim: usize,
    /// Channels turned, at the end of each head.
    pub rotated: usize,
    /// Angle per position of each pair.
    pub frequencies: RopeFrequencies,
    /// Factor on cos and sin.
    pub amplitude: f64,
    /// Turned back instead: by minus the position.
    pub inverse: bool,
}

impl TailRope {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![self.rows, Axis::Heads(self.heads), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
