use crate::program::Axis;

/// Softmax over the visible candidates and one number more for each head, the sink, which takes its
/// share and gives nothing: `[H, T, candidates]`, rows summing to less than 1. Inputs: scores
/// `[H, T, candidates]`, which are visible `[T, candidates]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkProbs {
    /// Query heads.
    pub heads: usize,
    /// The sinks, `[H]`; not scaled. `None`: there is none.
    pub sink: Option<String>,
}

impl SinkProbs {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        self.sink.iter().map(|s| (s.as_str(), vec![self.heads])).collect()
    }
}
