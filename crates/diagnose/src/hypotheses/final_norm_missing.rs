//! # No final norm
//!
//! The hidden state goes to the output matrix without the last norm.
//!
//! ## How it shows
//!
//! `final_norm` equals the last layer's output; or, if it is not recorded, logits are those of the raw
//! hidden state.
//!
//! ## Seen in
//!
//! - awslabs/keys_values#139
//!
//! ## Fix
//!
//! Apply the final norm on every path: prefill, decode, cached.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find_tap("final_norm").is_none() {
        return vec![];
    }
    vec![Edit::new("the final norm is left out").output(|at, inputs, _| {
        (at.tap() == "final_norm" && matches!(at.op().kind, OpKind::RmsNorm(_))).then(|| inputs.first().map(|x| (*x).clone()))?
    })]
}
