//! # Another formula for capping
//!
//! The tangent is multiplied by the logit instead of by the cap, or the logit is not divided before the
//! tangent is taken.
//!
//! ## How it shows
//!
//! Logits of negative sign become positive, or all of them are the cap.
//!
//! ## Seen in
//!
//! - unslothai/unsloth-zoo#593
//!
//! ## Fix
//!
//! `cap tanh(x / cap)`.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::{Edit, Scene};

type Formula = fn(f64, f64) -> f64;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::SoftCap(_))).is_none() {
        return vec![];
    }
    let formulas: [(&str, Formula); 3] = [
        ("x tanh(x / cap)", |x, cap| x * (x / cap).tanh()),
        ("cap tanh(x)", |x, cap| cap * x.tanh()),
        ("tanh(x / cap)", |x, cap| (x / cap).tanh()),
    ];
    let edit = |(says, formula): (&str, Formula)| {
        Edit::new(format!("{says} where the model has cap tanh(x / cap)")).output(move |at, inputs, _| {
            let OpKind::SoftCap(op) = &at.op().kind else { return None };
            let x = inputs.first()?;
            Tensor::new(x.shape().to_vec(), x.data().iter().map(|&x| formula(x, op.cap)).collect()).ok()
        })
    };
    formulas.into_iter().map(edit).collect()
}
