//! # LayerNorm where the model has RMSNorm
//!
//! The mean of the row is subtracted before it is normalised.
//!
//! ## How it shows
//!
//! Rows whose mean is near zero are nearly right: cosine stays at 0.9995.
//!
//! ## Seen in
//!
//! - no public case read; common where a framework offers LayerNorm only
//!
//! ## Fix
//!
//! Normalise by the root mean square alone.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.find(|k| matches!(k, OpKind::RmsNorm(_))).is_none() {
        return vec![];
    }
    vec![Edit::new("the mean is subtracted first").input(|at, _, x| {
        let OpKind::RmsNorm(norm) = &at.op().kind else { return None };
        let mut centred = x.clone();
        for row in centred.data_mut().chunks_mut(norm.dim) {
            let mean = row.iter().sum::<f64>() / norm.dim as f64;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        Some(centred)
    })]
}
