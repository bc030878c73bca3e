//! # A rotated cache not rotated back
//!
//! Values (or keys) are multiplied by a Hadamard matrix before they are stored, so that they quantise
//! better, and attention's output is not multiplied by its inverse.
//!
//! ## How it shows
//!
//! Values keep their lengths and are otherwise unlike; so is attention's output, by the same matrix for
//! every token.
//!
//! ## Seen in
//!
//! - TheTom/turboquant_plus#31
//!
//! ## Fix
//!
//! Turn attention's output back, or fold the inverse into the output projection.

use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::Tensor;

use super::stored::caches;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut edits = Vec::new();
    let cache = scene.find(|k| matches!(k, OpKind::Cache(_)));
    let dim = if let Some((_, Op { kind: OpKind::Cache(cache), .. })) = cache { cache.dim } else { 1 };
    for (which, set) in caches(scene) {
        let edit = Edit::new(format!("{which} are turned by a Hadamard matrix")).sums(dim);
        edits.push(edit.output(move |at, _, value| {
            let OpKind::Cache(cache) = &at.op().kind else { return None };
            set(at.tap()).then(|| turned(value, cache.dim)).flatten()
        }));
    }
    if let Some((_, Op { kind: OpKind::AttnHeads(heads), .. })) = scene.find(|k| matches!(k, OpKind::AttnHeads(_))) {
        let edit = Edit::new("attention's output is turned by a Hadamard matrix").sums(heads.dim);
        edits.push(edit.output(|at, _, value| {
            let OpKind::AttnHeads(heads) = &at.op().kind else { return None };
            turned(value, heads.dim)
        }));
    }
    edits
}

/// Each head times the Hadamard matrix of its size, in Sylvester's order.
fn turned(value: &Tensor<f64>, dim: usize) -> Option<Tensor<f64>> {
    dim.is_power_of_two().then_some(())?;
    let scale = (dim as f64).powf(-0.5);
    let mut out = value.clone();
    for head in out.data_mut().chunks_mut(dim) {
        let mut width = 1;
        while width < dim {
            for pair in head.chunks_mut(2 * width) {
                let (a, b) = pair.split_at_mut(width);
                a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
            }
            width *= 2;
        }
        head.iter_mut().for_each(|x| *x *= scale);
    }
    Some(out)
}
