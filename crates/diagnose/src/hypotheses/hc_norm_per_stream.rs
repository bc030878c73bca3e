//! # Streams are normalised one by one
//!
//! A hyper-connection's input is one norm over all streams of a token together. The engine normalises each stream by itself.
//!
//! ## How it shows
//!
//! `hc_attn_norm` and `hc_ffn_norm` are off by one factor for each stream of each token.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Flatten the streams first: one mean square over `hc_mult` times `hidden_size` values.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let of_streams = |op: &firstdiff_model::Op| op.wide && short(op).starts_with("hc_");
    if scene.find(|k| matches!(k, OpKind::WideNorm(norm) if norm.weight.is_none())).is_none() {
        return vec![];
    }
    let Some(streams) = scene.program().ops.iter().find_map(|op| match &op.kind {
        OpKind::Streams(streams) => Some(streams.clone()),
        _ => None,
    }) else {
        return vec![];
    };
    vec![Edit::new("each stream by itself").ops(move |op| {
        let of_streams = of_streams(op);
        if let OpKind::WideNorm(norm) = &mut op.kind
            && of_streams
            && norm.dim == streams.count * streams.dim
        {
            norm.dim = streams.dim;
        }
    })]
}
