use crate::program::Axis;

/// `y = cap tanh(x / cap)`: values stay inside `-cap..cap`.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftCap {
    /// The largest magnitude.
    pub cap: f64,
}

impl SoftCap {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
