//! # The embedding's scale left out or added
//!
//! Some families multiply the embedding by the root of the hidden size. The engine does so where the model
//! does not, or leaves it out.
//!
//! ## How it shows
//!
//! Every channel of `embed` is off by one factor. The next norm hides it; the residual stream does not.
//!
//! ## Seen in
//!
//! - paiml/aprender#2096
//!
//! ## Fix
//!
//! Take the factor from the family, not from the architecture's name alone.

use firstdiff_model::OpKind;

use super::tools::short_number;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::Embed(_))) else { return vec![] };
    let OpKind::Embed(embed) = &op.kind else { return vec![] };
    let root = (embed.dim as f64).sqrt();
    let unscaled = Edit::new(format!("the embedding is not multiplied by {}", short_number(embed.scale))).ops(|op| {
        if let OpKind::Embed(e) = &mut op.kind {
            e.scale = 1.0;
        }
    });
    let scaled = embed.scale != 1.0;
    // Where the model has the factor, leaving it out is the edit above: with the factor's own rounding.
    let factors = if scaled { vec![("times", root)] } else { vec![("times", root), ("divided by", 1.0 / root)] };
    let edits = factors
        .into_iter()
        .map(|(how, factor)| {
            Edit::new(format!("the embedding is {how} the root of {}, {}", embed.dim, short_number(root))).output(
                move |at, _, value| {
                    matches!(at.op().kind, OpKind::Embed(_)).then_some(())?;
                    let mut out = value.clone();
                    out.data_mut().iter_mut().for_each(|x| *x *= factor);
                    Some(out)
                },
            )
        });
    scaled.then_some(unscaled).into_iter().chain(edits).collect()
}
