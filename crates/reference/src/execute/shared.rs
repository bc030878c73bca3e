//! Errors that one rounded input spreads over many outputs.
//!
//! With inputs rounded to `x + d`, the error of `y = W x` is `W d`: its elements are not independent.
//! Along a direction `g` it is `d . (W^T g)`, whose variance is that of `d`, weighted.

use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::{Real, Tensor};
use rayon::prelude::*;

use super::noise::Spread;
use super::{Executor, Inputs};
use crate::arithmetic::{Arithmetic, InputRounding};
use crate::error::Error;
use crate::kernels::attention;
use crate::kernels::input::variance_along;

/// Variance of `sum of error * direction` (see [`super::Noise::direction`]) from rounded inputs, for
/// every step and every row of the output's last axis; empty where inputs are not rounded.
pub(super) fn along<T: Real>(
    executor: &Executor,
    a: &Arithmetic,
    op: &Op,
    inputs: &[Inputs<T>],
    exact: &[&Tensor<T>],
    spreads: &[Spread<T>],
) -> Result<Vec<Vec<f64>>, Error> {
    let none = || Ok(vec![vec![]; inputs.len()]);
    let rounding = match &op.kind {
        OpKind::Linear(linear) => a.input_rounding(executor.weights.storage(&linear.weight)?),
        OpKind::AttnScores(scores) => a.query_rounding(scores.scale),
        OpKind::AttnHeads(_) => a.probability_rounding(),
        _ => InputRounding::None,
    };
    if rounding == InputRounding::None || spreads.iter().all(|s| s.noise.is_none()) {
        return none();
    }
    // Steps that are not recorded keep the exact value: any direction will do.
    let directions: Vec<Tensor<T>> = exact
        .iter()
        .zip(spreads)
        .map(|(y, spread)| {
            let mut g = (*y).clone();
            if let Some(noise) = &spread.noise {
                let toward = |(i, g): (usize, &mut T)| *g = T::from_f64(noise.direction(i, g.to_f64()));
                g.data_mut().par_iter_mut().enumerate().with_min_len(1024).for_each(toward);
            }
            g
        })
        .collect();
    let parts = inputs.iter().zip(&directions);
    match &op.kind {
        OpKind::Linear(linear) => {
            let y: Vec<f32> = directions.iter().flat_map(|y| y.data().iter().map(|y| y.to_f32())).collect();
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
