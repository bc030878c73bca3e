//! # The embeddings' factor rounded otherwise
//!
//! The model rounds the constant that it multiplies embeddings by to the format of its weights: 33.94
//! becomes 34 in bf16. The engine rounds it where the model does not, or the other way round.
//!
//! ## How it shows
//!
//! `embed` is off by a factor near 1, such as 1.0017.
//!
//! ## Seen in
//!
//! - huggingface/transformers#38702
//! - huggingface/transformers#29402
//!
//! ## Fix
//!
//! Round the constant as the model does: to the weights' format.

use firstdiff_model::OpKind;
use firstdiff_tensor::{Float, Tensor};

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Embed(_))) else { return vec![] };
    let OpKind::Embed(embed) = &op.kind else { return vec![] };
    let (exact, short) = (embed.scale, Float::BF16.round(embed.scale));
    if exact == 1.0 || exact == short {
        return vec![];
    }
    let edit = |detail: String, factor: f64| {
        Edit::new(detail).output(move |at, _, value| {
            let scaled = || value.data().iter().map(|x| x * factor).collect();
            matches!(at.op().kind, OpKind::Embed(_)).then(|| Tensor::new(value.shape().to_vec(), scaled()).ok())?
        })
    };
    vec![
        edit(format!("the embeddings' factor {exact:.4} is rounded to {short}"), short / exact),
        edit(format!("the embeddings' factor is {exact:.4} where the model rounds it to {short}"), exact / short),
    ]
}
