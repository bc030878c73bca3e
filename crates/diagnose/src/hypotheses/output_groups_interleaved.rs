//! # Heads go to the wrong output groups
//!
//! The output projection works on groups of consecutive heads. The engine deals heads out to groups in turn.
//!
//! ## How it shows
//!
//! `attn_groups` is wrong from the first token on; `attn_unrotated` is right.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Group g has heads `g H/G` to `(g + 1) H/G - 1`.

use firstdiff_model::OpKind;

use super::tools::gather;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::GroupedLinear(_))) else { return vec![] };
    let OpKind::GroupedLinear(linear) = &op.kind else { return vec![] };
    let heads = scene.program().ops.iter().find_map(|op| match &op.kind {
        OpKind::SinkProbs(probs) => Some(probs.heads),
        _ => None,
    });
    let Some(heads) = heads.filter(|h| h % linear.groups == 0 && *h > linear.groups) else { return vec![] };
    let (groups, width) = (linear.groups, linear.groups * linear.input);
    let dim = width / heads;
    vec![Edit::new("heads are dealt out to groups in turn").input(move |at, _, x| {
        let each = heads / groups;
        let from = |i: usize| {
            let (place, channel) = (i / dim, i % dim);
            (place % each * groups + place / each) * dim + channel
        };
        matches!(at.op().kind, OpKind::GroupedLinear(_)).then(|| gather(x, width, from))
    })]
}
