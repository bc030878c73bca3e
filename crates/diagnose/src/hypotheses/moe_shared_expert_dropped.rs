//! # The shared expert is not added
//!
//! The expert that every token goes through is computed, or not, but its output is missing from the
//! sum.
//!
//! ## How it shows
//!
//! The MLP's output equals `experts_out`; what lacks is `shared_out`.
//!
//! ## Seen in
//!
//! - divyamakkar0/JAXformer#21
//!
//! ## Fix
//!
//! Add it on every path: prefill, decode, captured graphs.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let sum = scene.find_tap("mlp_out").filter(|(_, op)| matches!(op.kind, OpKind::Add(_)));
    if sum.is_none() {
        return vec![];
    }
    let only = |detail: &str, kept: usize| {
        Edit::new(detail).output(move |at, inputs, _| {
            let sum = at.tap() == "mlp_out" && matches!(at.op().kind, OpKind::Add(_));
            sum.then(|| inputs.get(kept).map(|x| (*x).clone()))?
        })
    };
    vec![
        only("the shared expert's output is not added", 0),
        only("the chosen experts' output is not added to the shared one's", 1),
    ]
}
