use crate::program::Axis;

/// `y = w * x / sqrt(mean(x^2) + eps)` over the last `dim` channels, with a weight that is kept in f32
/// and a product that is rounded once; without a weight, `1 / sqrt(..)` itself is rounded before it
/// multiplies.
#[derive(Clone, Debug, PartialEq)]
pub struct WideNorm {
    /// The weight, `[dim]`; `None`: 1.
    pub weight: Option<String>,
    /// Added to the mean square.
    pub eps: f64,
    /// Channels normalised together.
    pub dim: usize,
    /// The output's axes after the first: `[heads, dim]`, or `[dim]`.
    pub heads: Option<usize>,
    /// What the rows are.
    pub rows: Axis,
}

impl WideNorm {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        let mut axes = vec![self.rows];
        axes.extend(self.heads.map(Axis::Heads));
        axes.push(Axis::Channels(self.dim));
        axes
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        self.weight.iter().map(|w| (w.as_str(), vec![self.dim])).collect()
    }
}
