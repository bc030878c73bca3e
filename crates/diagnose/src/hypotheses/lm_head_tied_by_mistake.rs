//! # The embedding used as output matrix
//!
//! The file has an output matrix of its own, and the engine uses the embedding instead.
//!
//! ## How it shows
//!
//! Everything up to `final_norm` is right, logits are not.
//!
//! ## Seen in
//!
//! - deepspeedai/DeepSpeed#4088
//! - sgl-project/sglang#18024
//! - pegainfer-project/pegainfer#544
//!
//! ## Fix
//!
//! Tie only where `tie_word_embeddings` is true.

use firstdiff_model::OpKind;

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find_tap("logits") else { return vec![] };
    let embedding = scene.program().ops.iter().find_map(|op| match &op.kind {
        OpKind::Embed(e) => Some(e.weight.clone()),
        _ => None,
    });
    let (OpKind::Linear(linear), Some(embedding)) = (&op.kind, embedding) else { return vec![] };
    if linear.weight == embedding {
        return vec![];
    }
    let logits = op.tap.clone();
    vec![Edit::new("the embedding is used as output matrix, though the file has its own").ops(move |op| {
        if op.tap == logits
            && let OpKind::Linear(linear) = &mut op.kind
        {
            linear.weight = embedding.clone();
        }
    })]
}
