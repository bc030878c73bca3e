//! # Each row takes another head's sink
//!
//! Attention has a learnt sink for each head. A kernel that goes through rows of heads and tokens numbers them together, and
//! takes the sink of the row's number instead of the head's.
//!
//! ## How it shows
//!
//! Decoding is right, for there a head has one row; prompts are wrong, in all heads whose number times the tokens is another
//! number modulo the heads.
//!
//! ## Seen in
//!
//! - modular/modular#6591
//!
//! ## Fix
//!
//! Divide the row's number by the tokens before it is taken for a head.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let has_sink = |k: &OpKind| matches!(k, OpKind::SinkProbs(probs) if probs.sink.is_some());
    if scene.find(has_sink).is_none() {
        return vec![];
    }
    vec![Edit::new("row r of heads and tokens takes the sink of head r mod heads").output(|at, _, value| {
        let OpKind::SinkProbs(probs) = &at.op().kind else { return None };
        let sinks = at.weight(probs.sink.as_ref()?)?;
        let (mut out, keys) = (value.clone(), value.row_len() / value.shape().get(1)?);
        let tokens = *value.shape().get(1)?;
        (sinks.len() == probs.heads && keys > 0).then_some(())?;
        for (row, probs_of_row) in out.data_mut().chunks_mut(keys).enumerate() {
            let (own, other) = (sinks[row / tokens % probs.heads], sinks[row % probs.heads]);
            // Its share grows from e^own to e^other, and the sum of all shares with it.
            let share = 1.0 - probs_of_row.iter().sum::<f64>();
            let sum = 1.0 - share + share * f64::from(other - own).exp();
            probs_of_row.iter_mut().for_each(|p| *p /= sum);
        }
        Some(out)
    })]
}
