//! # Queries and keys normalised over all heads together
//!
//! Some families normalise each head of q and k on its own, others all heads together. The engine does what
//! the other ones do, with the weight repeated for each head.
//!
//! ## How it shows
//!
//! Each row's heads are off by factors that differ from head to head; the mean square over all heads is 1.
//!
//! ## Seen in
//!
//! - NVIDIA/TensorRT-LLM#3491
//!
//! ## Fix
//!
//! Look at the weight's length: the head size, or all heads.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::RmsNorm(n) if n.heads.is_some())).is_none() {
        return vec![];
    }
    vec![Edit::new("heads are normalised together").output(|at, inputs, value| {
        let OpKind::RmsNorm(norm) = &at.op().kind else { return None };
        let width = norm.heads? * norm.dim;
        let x = inputs.first()?;
        // From the right value, whose roundings come along.
        let mut out = value.clone();
        for (out, x) in out.data_mut().chunks_mut(width).zip(x.data().chunks(width)) {
            let root = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + norm.eps).sqrt();
            let all = root(x);
            for (out, x) in out.chunks_mut(norm.dim).zip(x.chunks(norm.dim)) {
                let factor = root(x) / all;
                out.iter_mut().for_each(|y| *y *= factor);
            }
        }
        Some(out)
    })]
}
