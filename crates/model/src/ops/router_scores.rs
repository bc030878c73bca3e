use crate::program::Axis;

/// What a router makes of its logits before it chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `exp(l) / sum over all experts of exp(l)`.
    Softmax,
    /// `1 / (1 + exp(-l))`.
    Sigmoid,
    /// `sqrt(ln(1 + exp(l)))`.
    SqrtSoftplus,
}

impl Scoring {
    /// The scoring with this `scoring_func` spelling.
    pub fn from_name(name: &str) -> Option<Scoring> {
        match name {
            "softmax" => Some(Scoring::Softmax),
            "sigmoid" => Some(Scoring::Sigmoid),
            "sqrtsoftplus" => Some(Scoring::SqrtSoftplus),
            _ => None,
        }
    }

    /// Every spelling.
    pub const NAMES: &str = "softmax, sigmoid and sqrtsoftplus";
}

/// How well each expert suits each token, `[T, experts]`. Input: the router's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterScores {
    /// The function.
    pub scoring: Scoring,
    /// Computed and kept in the format of running sums, whatever results are stored in otherwise.
    pub wide: bool,
}

impl RouterScores {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
