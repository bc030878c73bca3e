use crate::program::Axis;

/// `y[t, g] = W_g x[t, g]`, `[T, groups out]`: consecutive channels form groups, each with a matrix of
/// its own.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedLinear {
    /// The matrices one below the other, `[groups out, in]`.
    pub weight: String,
    /// Groups.
    pub groups: usize,
    /// Input features of each.
    pub input: usize,
    /// Output features of each.
    pub output: usize,
}

impl GroupedLinear {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Heads(self.groups), Axis::Channels(self.output)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![(&self.weight, vec![self.groups * self.output, self.input])]
    }
}
