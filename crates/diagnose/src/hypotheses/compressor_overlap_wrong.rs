//! # The two halves of a sparse layer's compressor
//!
//! Entries of sparse layers pool two blocks: the first half of the channels of the block before, the second half of the entry's own. The
//! engine leaves the block before out, or takes the halves the other way round.
//!
//! ## How it shows
//!
//! `comp_pool` and `index_pool` are wrong; without the block before, the first entry is right.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! One softmax over 2m gates: the first half of block e-1, then the second half of block e. Entry 0 has only its own.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use super::tools::{Apes, apes};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Apes { all, .. } = apes(scene, |pool| pool.overlap);
    if all.is_empty() {
        return vec![];
    }
    let (names, others) = (all.clone(), all);
    let missing = Edit::new("the block before is left out").weight(move |w| {
        let dim = names.get(w.name)?;
        let mut values = w.values()?.to_vec();
        // A gate so low that its weight is zero.
        values.chunks_mut(2 * dim).for_each(|row| row[..*dim].fill(-1e9));
        Some(values)
    });
    let swapped = |with_bias: bool| {
        let names = others.clone();
        let detail = if with_bias { "halves swapped" } else { "halves swapped, but not those of the position bias" };
        let edit = Edit::new(detail).input(|at, _, x| match &at.op().kind {
            OpKind::Pool(pool) if pool.overlap => Some(rows_swapped(x, pool.dim)),
            _ => None,
        });
        if !with_bias {
            return edit;
        }
        edit.weight(move |w| {
            let dim = names.get(w.name)?;
            let mut values = w.values()?.to_vec();
            values.chunks_mut(2 * dim).for_each(|row| row.rotate_left(*dim));
            Some(values)
        })
    };
    vec![missing, swapped(true), swapped(false)]
}

fn rows_swapped(x: &Tensor<f64>, dim: usize) -> Tensor<f64> {
    let mut out = x.clone();
    out.data_mut().chunks_mut(2 * dim).filter(|row| row.len() == 2 * dim).for_each(|row| row.rotate_left(dim));
    out
}
