//! # Embeddings not scaled, or scaled twice
//!
//! The model multiplies its embeddings by a constant, the root of the hidden size in Gemma. The engine
//! does not, or does it twice, or scales those of a model that does not.
//!
//! ## How it shows
//!
//! `embed` is off by one factor. The first norm hides it, the residual stream does not.
//!
//! ## Seen in
//!
//! - paiml/aprender#2096
//!
//! ## Fix
//!
//! Scale once, right after the lookup.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Embed(_))) else { return vec![] };
    let OpKind::Embed(embed) = &op.kind else { return vec![] };
    let root = (embed.dim as f64).sqrt();
    let factors: Vec<(f64, String)> = if embed.scale == 1.0 {
        vec![(root, format!("embeddings are multiplied by {root:.4}, the model has no factor"))]
    } else {
        vec![
            (1.0, format!("embeddings are not multiplied by {:.4}", embed.scale)),
            (embed.scale * embed.scale, format!("embeddings are multiplied by {:.4} twice", embed.scale)),
        ]
    };
    let edit = |(factor, detail): (f64, String)| {
        Edit::new(detail).ops(move |op| {
            if let OpKind::Embed(e) = &mut op.kind {
                e.scale = factor;
            }
        })
    };
    factors.into_iter().map(edit).collect()
}
