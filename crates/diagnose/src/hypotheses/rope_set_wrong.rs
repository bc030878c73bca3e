//! # Rotation with the frequencies of other layers
//!
//! Sliding layers rotate by one set of frequencies, layers with compressed keys by another. The engine uses one for the other.
//!
//! ## How it shows
//!
//! Queries and keys of one kind of layer are wrong from the second token on; those of the other kind are right.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Choose the set by the kind of the layer: `rope_theta` alone for sliding layers, `compress_rope_theta` with scaling for the others.

use firstdiff_model::{OpKind, RopeFrequencies};

use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut own: Vec<&RopeFrequencies> = Vec::new();
    for &i in &scene.ops {
        if let OpKind::TailRope(rope) = &scene.program().ops[i].kind
            && !own.contains(&&rope.frequencies)
        {
            own.push(&rope.frequencies);
        }
    }
    let mut all: Vec<&RopeFrequencies> = Vec::new();
    for op in &scene.program().ops {
        if let OpKind::TailRope(rope) = &op.kind
            && !all.contains(&&rope.frequencies)
        {
            all.push(&rope.frequencies);
        }
    }
    let pairs = own.iter().flat_map(|own| all.iter().filter(move |other| *other != own).map(move |other| (*own, *other)));
    pairs
        .map(|(own, other)| {
            let (own, other) = (own.clone(), other.clone());
            Edit::new("the frequencies of the model's other layers").ops(move |op| {
                if let OpKind::TailRope(rope) = &mut op.kind
                    && rope.frequencies == own
                {
                    rope.frequencies = other.clone();
                }
            })
        })
        .collect()
}
