//! Weights whose scales are tensors of their own (FP8, MXFP4 and NVFP4 of safetensors folders), as engines misread them.

use std::collections::BTreeSet;

use firstdiff_reference::Misreading;

use crate::edit::Weight;
use crate::{Edit, Scene};

/// Formats of such weights, by name.
const FP8: &str = "FP8+scales";
const MXFP4: &str = "MXFP4+scales";
const NVFP4: &str = "NVFP4+scales";
pub(super) const ALL: &[&str] = &[FP8, MXFP4, NVFP4];
pub(super) const FOUR_BITS: &[&str] = &[MXFP4, NVFP4];
pub(super) const WITH_FACTOR: &[&str] = &[NVFP4];

/// Elements of an operation's weights up to which they are decoded again for a hypothesis: all experts of a large model
/// are more than memory holds.
const MOST: usize = 1 << 28;

/// Edits in which matrices of these formats are misread: all of them, and where the segment's are of several kinds, each kind
/// alone. A loader treats a kind alike in every layer and expert. What is right in the engine is not looked at, so that all
/// can be edited.
pub(super) fn edits(scene: &Scene, formats: &'static [&str], what: &str, how: Misreading) -> Vec<Edit> {
    let mut kinds = BTreeSet::new();
    for &index in &scene.ops {
        let weights = scene.program().ops[index].kind.weights();
        if weights.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>() > MOST {
            continue;
        }
        let of_format = |name: &str| scene.format(name).is_some_and(|f| formats.contains(&f));
        kinds.extend(weights.iter().filter(|(name, _)| of_format(name)).map(|(name, _)| kind(name)));
    }
    if kinds.is_empty() {
        return vec![];
    }
    let any = move |w: &Weight| w.format().is_some_and(|f| formats.contains(&f));
    let mut edits = vec![Edit::new(what).weight(move |w| any(w).then(|| w.misread(how)).flatten())];
    if kinds.len() > 1 {
        let alone = |of: String| {
            Edit::new(format!("{what} ({} alone)", short(&of)))
                .weight(move |w| (kind(w.name) == of).then(|| w.misread(how)).flatten())
        };
        edits.extend(kinds.into_iter().map(alone));
    }
    edits
}

/// A tensor's name without the numbers of layers and experts.
fn kind(name: &str) -> String {
    name.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

/// What a reader knows a kind by: `up_proj` of `model.layers.mlp.up_proj.weight`.
fn short(kind: &str) -> &str {
    let kind = kind.strip_suffix(".weight").unwrap_or(kind);
    kind.rsplit('.').next().unwrap_or(kind)
}
