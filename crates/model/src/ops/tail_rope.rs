use crate::program::Axis;
use crate::rope::RopeFrequencies;

/// What stands for a compressed entry's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPlace {
    /// The position of its first token.
    First,
    /// That of its last token.
    Last,
    /// Its own number.
    Number,
}

/// Rotary position embedding of the last `rotated` channels of each head; neighbouring channels are a
/// pair, unless said otherwise below. The rows are tokens, or compressed entries.
#[derive(Clone, Debug, PartialEq)]
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
    /// The first channels of each head turn instead of the last.
    pub leading: bool,
    /// A channel's partner is half of the turned ones away, not its neighbour.
    pub halves: bool,
    /// By what an entry turns.
    pub entry: EntryPlace,
}

impl TailRope {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![self.rows, Axis::Heads(self.heads), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
