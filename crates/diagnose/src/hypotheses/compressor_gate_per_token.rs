//! # One gate for all channels of a token
//!
//! The compressor's softmax over a block's tokens is taken channel by channel. The engine weighs all channels of a token by the
//! first one's gate.
//!
//! ## How it shows
//!
//! `comp_pool` and `index_pool` are wrong in every channel but the first.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Take the softmax over time separately for every channel.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::tools::{Apes, apes};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Apes { all, .. } = apes(scene, |_| true);
    if all.is_empty() {
        return vec![];
    }
    let edit = |with_bias: bool| {
        let all = all.clone();
        let detail = if with_bias { "" } else { "; the position bias is added channel by channel" };
        let edit = Edit::new(format!("the first channel's gate weighs all{detail}")).input(|at, number, x| {
            match &at.op().kind {
                OpKind::Pool(pool) if number == 1 => {
                    let mut out: Tensor<f64> = x.clone();
                    out.data_mut().chunks_mut(pool.dim).for_each(|part| part.fill(part[0]));
                    Some(out)
                }
                _ => None,
            }
        });
        if !with_bias {
            return edit;
        }
        edit.weight(move |w| {
            let dim = all.get(w.name)?;
            let mut values = w.values()?.to_vec();
            values.chunks_mut(*dim).for_each(|part| part.fill(part[0]));
            Some(values)
        })
    };
    vec![edit(true), edit(false)]
}
