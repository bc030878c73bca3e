//! # Only part of each query is loaded
//!
//! Each thread holds its own channels of the query in registers and multiplies only those; the others count
//! as zero.
//!
//! ## How it shows
//!
//! A score is the product of the first channel, or of the first few, of query and key.
//!
//! ## Seen in
//!
//! - A CUDA engine for Qwen2.5 written from scratch, which has no public repository
//!
//!
//! ## Fix
//!
//! Load the whole query into shared memory, or sum over the threads that hold its parts.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::AttnScores(_))) else { return vec![] };
    let OpKind::AttnScores(scores) = &op.kind else { return vec![] };
    let dim = scores.dim;
    (0..8)
        .map(|power| 1usize << power)
        .take_while(|loaded| *loaded < dim)
        .map(|loaded| {
            let channels = if loaded == 1 { "channel".to_string() } else { format!("{loaded} channels") };
            Edit::new(format!("of each query only the first {channels} of {dim} take part")).input(move |at, number, x| {
                (matches!(at.op().kind, OpKind::AttnScores(_)) && number == 0).then_some(())?;
                let mut out = x.clone();
                out.data_mut().iter_mut().enumerate().filter(|(i, _)| i % dim >= loaded).for_each(|(_, x)| *x = 0.0);
                Some(out)
            })
        })
        .collect()
}
