use crate::program::Axis;

/// What each chosen expert counts, `[T, k]`: its score, made to sum to 1 or not, times a constant.
/// Inputs: scores `[T, experts]`, the choice `[T, k]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterWeights {
    /// Scores are divided by their sum over the chosen ones plus this; `None`: not divided.
    pub normalise: Option<f64>,
    /// Factor on all of them.
    pub scale: f64,
    /// Inner values are kept in the format of running sums, whatever results are stored in.
    pub wide: bool,
}

impl RouterWeights {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
