use std::collections::BTreeMap;

use super::{Activation, Limit};
use crate::program::Axis;

/// Rows of a tensor that are one matrix: the whole of it, or an expert's part of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The tensor.
    pub tensor: String,
    /// Its shape; the last axis are the matrix's columns, all before it its rows.
    pub shape: Vec<usize>,
    /// The matrix's first row in it.
    pub first: usize,
    /// The matrix's rows.
    pub rows: usize,
}

impl Slice {
    /// A matrix `[rows, cols]` that is a tensor of its own.
    pub fn whole(tensor: impl Into<String>, rows: usize, cols: usize) -> Slice {
        Slice { tensor: tensor.into(), shape: vec![rows, cols], first: 0, rows }
    }

    /// Matrix `number` of a stack `[count, rows, cols]`.
    pub fn of_stack(tensor: impl Into<String>, number: usize, [count, rows, cols]: [usize; 3]) -> Slice {
        Slice { tensor: tensor.into(), shape: vec![count, rows, cols], first: number * rows, rows }
    }
}

/// The three matrices of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expert {
    /// `[ffn, d]`.
    pub gate: Slice,
    /// `[ffn, d]`.
    pub up: Slice,
    /// `[d, ffn]`.
    pub down: Slice,
}

/// A mixture of experts (Shazeer et al., 2017, arXiv:1701.06538), each a gated MLP:
/// `y[t] = sum over chosen e of w[t, e] * down_e(act(gate_e x[t]) * up_e x[t])`, `[T, d]`. Inputs:
/// x `[T, d]`, the choice `[T, k]`, its weights `[T, k]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Every expert, by number.
    pub experts: Vec<Expert>,
    /// The activation.
    pub activation: Activation,
    /// What gate and up are cut off at.
    pub limit: Option<Limit>,
    /// Hidden size.
    pub dim: usize,
    /// Inner size of each expert.
    pub inner: usize,
}

impl Experts {
    pub(super) fn axes(&self, _input: &[Axis]) -> Vec<Axis> {
        vec![Axis::Tokens, Axis::Channels(self.dim)]
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        let slices = self.experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down]);
        let tensors: BTreeMap<&str, &Vec<usize>> = slices.map(|s| (s.tensor.as_str(), &s.shape)).collect();
        tensors.into_iter().map(|(name, shape)| (name, shape.clone())).collect()
    }
}
