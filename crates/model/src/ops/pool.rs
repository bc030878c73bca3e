use crate::program::Axis;

/// Compressed entries: each block of `ratio` tokens becomes one vector, when its last token is there.
/// `v[c] = sum over j of a[j, c] K[j, c]`, with `a` the softmax over the block's tokens j, channel by
/// channel, of `Z[j, c] + ape[j, c]`. With `overlap`, `K` and `Z` have twice the channels, and an entry
/// pools the first half of the block before and the second half of its own: 2 `ratio` items in one
/// softmax; the first block has only its own.
///
/// Inputs: all `K` so far and all `Z` so far, `[K, 1, dim or 2 dim]`. Output: the entries that this step
/// completes, `[new entries, dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Tokens of a block.
    pub ratio: usize,
    /// Channels of an entry.
    pub dim: usize,
    /// Whether an entry sees the block before.
    pub overlap: bool,
    /// Added to the gates by place in the block, `[ratio, dim or 2 dim]`.
    pub ape: String,
}

impl Pool {
    /// Channels of the inputs.
    pub fn width(&self) -> usize {
        if self.overlap { 2 * self.dim } else { self.dim }
    }

    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::NewEntries(self.ratio), Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![(&self.ape, vec![self.ratio, self.width()])]
    }
}
