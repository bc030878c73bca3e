//! # Layers with and without rotation mixed up
//!
//! Some families rotate in some layers only (every fourth one not, in SmolLM3 and Llama 4). Here layers are
//! left unrotated that the model rotates.
//!
//! ## How it shows
//!
//! Wrong in some layers, evenly spaced; there, rotated queries and keys equal what they were before.
//!
//! ## Seen in
//!
//! - timtoole02/Camelid#535
//! - airockchip/rknn-llm#501
//! - pytorch/executorch#22043
//! - NVIDIA/TensorRT-LLM#3382
//!
//! ## Fix
//!
//! Take the list of layers from the configuration (`no_rope_layers`, `layer_types`).

use super::tools::{at_rope, ropes};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let layers = scene.program().ops.iter().filter_map(|op| firstdiff_trace::tap::split(&op.tap).0).max();
    // A model that is rotated nowhere has lost more than a list of layers.
    if layers.is_none_or(|last| scene.layers.len() > last) {
        return vec![];
    }
    let edit = |(which, set): super::tools::Set| {
        let layers = scene.layers.clone();
        Edit::new(format!("not rotated in layers {layers:?}{which}")).output(move |at, inputs, value| {
            let here = at_rope(at, set) && at.layer().is_some_and(|l| layers.contains(&l));
            here.then(|| (*inputs.first()?).clone().reshape(value.shape().to_vec()).ok()).flatten()
        })
    };
    // In decode alone it is a position that is lost.
    if scene.input().positions.len() < 2 { vec![] } else { ropes(scene).into_iter().map(edit).collect() }
}
