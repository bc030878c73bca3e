//! # Logits capped where the model does not
//!
//! Logits are bounded by `cap tanh(x / cap)`, which another version of the model has and this one has
//! not.
//!
//! ## How it shows
//!
//! No logit is larger than the cap; small ones are right.
//!
//! ## Seen in
//!
//! - ollama/ollama#9692
//!
//! ## Fix
//!
//! Cap only where the configuration says so.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::{Edit, Scene};

/// Caps of released models.
const CAPS: [f64; 3] = [30.0, 50.0, 20.0];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let is_last = |k: &OpKind| matches!(k, OpKind::Linear(_));
    if scene.find_tap("logits").filter(|(_, op)| is_last(&op.kind)).is_none() {
        return vec![];
    }
    let edit = |cap: f64| {
        Edit::new(format!("logits are capped at {cap}, the model has no cap")).output(move |at, _, y| {
            let capped = || y.data().iter().map(|x| cap * (x / cap).tanh()).collect();
            (at.tap() == "logits").then(|| Tensor::new(y.shape().to_vec(), capped()).ok())?
        })
    };
    CAPS.map(edit).into()
}
