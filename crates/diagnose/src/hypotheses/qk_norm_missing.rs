//! # No norm over heads of queries and keys
//!
//! The family normalises each head of q and k before the rotation, and the engine does not: an attribute
//! spelled otherwise, or a test for another architecture.
//!
//! ## How it shows
//!
//! `q_norm` and `k_norm` equal what they should normalise: the root mean square of a head is not 1.
//!
//! ## Seen in
//!
//! - vllm-project/vllm-metal#659
//!
//! ## Fix
//!
//! Build the norms wherever the checkpoint has `q_norm.weight`.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let present: Vec<&str> = ["q_norm", "k_norm"].into_iter().filter(|name| scene.find_tap(name).is_some()).collect();
    if present.is_empty() {
        return vec![];
    }
    let mut sets: Vec<(&str, &[&str])> = vec![("queries and keys", &["q_norm", "k_norm"])];
    if present.len() > 1 {
        sets.extend([("queries", &["q_norm"] as &[&str]), ("keys", &["k_norm"])]);
    }
    sets.into_iter()
        .map(|(what, taps)| {
            let taps: Vec<String> = taps.iter().map(|t| t.to_string()).collect();
            Edit::new(format!("heads of {what} are not normalised")).output(move |at, inputs, value| {
                let is_norm = matches!(at.op().kind, OpKind::RmsNorm(_));
                (is_norm && taps.iter().any(|t| t == at.tap())).then_some(())?;
                (*inputs.first()?).clone().reshape(value.shape().to_vec()).ok()
            })
        })
        .collect()
}
