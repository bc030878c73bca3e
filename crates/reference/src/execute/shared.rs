//! Errors that one rounded input spreads over many outputs.
//!
//! With inputs rounded to `x + d`, the error of `y = W x` is `W d`: its elements are not independent.
//! Along the exact value it is `d . (W^T y)`, whose variance is that of `d`, weighted.

use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::{Real, Tensor};

use super::{Executor, Inputs};
use crate::arithmetic::{Arithmetic, InputRounding, MatmulInputs};
use crate::error::Error;
use crate::kernels::attention;
use crate::kernels::input::variance_along;

/// Variance of `sum of error * exact` from rounded inputs, for every step and every row of the output's
/// last axis; empty where inputs are not rounded.
pub(super) fn along<T: Real>(
    executor: &Executor,
    a: &Arithmetic,
    op: &Op,
    inputs: &[Inputs<T>],
    exact: &[Tensor<T>],
    recorded: &[bool],
) -> Result<Vec<Vec<f64>>, Error> {
    let none = || Ok(vec![vec![]; inputs.len()]);
    let rounding = a.attention_rounding();
    let attends = matches!(op.kind, OpKind::AttnScores(_) | OpKind::AttnHeads(_));
    if a.matmul_inputs == MatmulInputs::AsStored
        || !recorded.contains(&true)
        || attends && rounding == InputRounding::None
    {
        return none();
    }
    let parts = inputs.iter().zip(exact);
    match &op.kind {
        OpKind::Linear(linear) => {
            let rounding = a.input_rounding(executor.weights.storage(&linear.weight)?);
            if rounding == InputRounding::None {
                return none();
            }
            let y: Vec<f32> = exact.iter().flat_map(|y| y.data().iter().map(|y| y.to_f32())).collect();
            let directions = executor.weights.transposed_product(&linear.weight, &y)?;
            let mut rows = directions.chunks(linear.input);
            let row = |x: &[T], g: Option<&[f32]>| variance_along(x, g.unwrap_or_default(), rounding);
            let step = |i: &Inputs<T>| {
                i.values[0].exact.data().chunks(linear.input).map(|x| row(x, rows.next())).collect()
            };
            Ok(inputs.iter().map(step).collect())
        }
        OpKind::AttnScores(scores) => Ok(parts
            .map(|(i, y)| {
                let (q, k) = (i.values[0].exact.as_ref(), i.values[1].exact.as_ref());
                let heads = firstdiff_model::ops::AttnHeads {
                    heads: scores.heads,
                    kv_heads: scores.kv_heads,
                    dim: scores.dim,
                };
                let g: Vec<f32> = attention::heads(y, k.data(), &heads).iter().map(|g| g.to_f32()).collect();
                let squared = scores.scale * scores.scale;
                let row = |x: &[T], g: &[f32]| squared * variance_along(x, g, rounding);
                // The queries lie token by token, the scores head by head.
                let (tokens, heads, dim) = (q.rows(), scores.heads, scores.dim);
                let at = |i: usize| (i % tokens * heads + i / tokens) * dim;
                (0..heads * tokens).map(|i| row(&q.data()[at(i)..][..dim], &g[at(i)..][..dim])).collect()
            })
            .collect()),
        OpKind::AttnHeads(heads) => Ok(parts
            .map(|(i, y)| {
                let (p, v) = (i.values[0].exact.as_ref(), i.values[1].exact.as_ref());
                let keys = p.shape()[2];
                let scores = firstdiff_model::ops::AttnScores {
                    heads: heads.heads,
                    kv_heads: heads.kv_heads,
                    dim: heads.dim,
                    scale: 1.0,
                };
                let stored = v.rows();
                let v = &v.data()[stored.saturating_sub(keys) * v.row_len()..];
                let g: Vec<f32> =
                    attention::scores(y.data(), v, &scores, 1.0).data().iter().map(|g| g.to_f32()).collect();
                let row = |x: &[T], g: &[f32]| variance_along(x, g, rounding);
                // The probabilities lie head by head, the sums over values token by token.
                let (heads, tokens) = (p.shape()[0], p.shape()[1]);
                let at = |i: usize| (i % heads * tokens + i / heads) * keys;
                (0..heads * tokens).map(|i| row(&p.data()[at(i)..][..keys], &g[at(i)..][..keys])).collect()
            })
            .collect()),
        _ => none(),
    }
}
