//! # Layers loaded in another order
//!
//! Layers are sorted as text, so that 10 comes before 2; or shards are joined in another order than the
//! index says.
//!
//! ## How it shows
//!
//! From some layer on everything is wrong, though each weight is one of the file's. Norms show it first.
//!
//! ## Seen in
//!
//! - arcee-ai/mergekit#143
//!
//! ## Fix
//!
//! Sort by number, and take each tensor by its name.

use crate::edit::Weight;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let layers = 1 + scene.program().ops.iter().filter_map(|op| firstdiff_trace::tap::split(&op.tap).0).max().unwrap_or(0);
    let Some(here) = firstdiff_trace::tap::split(&scene.program().ops[scene.op].tap).0 else { return vec![] };
    let mut edits = Vec::new();
    let mut as_text: Vec<usize> = (0..layers).collect();
    as_text.sort_by_key(usize::to_string);
    // Every layer that it moves must be wrong.
    let fits = |order: &[usize]| {
        order[here] != here && order.iter().enumerate().all(|(l, o)| l == *o || scene.layers.contains(&l))
    };
    if fits(&as_text) {
        edits.push(reordered("layers are sorted as text: 0, 1, 10, 11, 2, …".into(), as_text));
    }
    let reverse: Vec<usize> = (0..layers).rev().collect();
    if layers > 2 && fits(&reverse) {
        edits.push(reordered("layers are in reverse order".into(), reverse));
    }
    for other in (0..layers).filter(|o| *o != here) {
        let mut order: Vec<usize> = (0..layers).collect();
        order.swap(here, other);
        edits.push(reordered(format!("layers {} and {} are exchanged", here.min(other), here.max(other)), order).fitted(1));
    }
    edits
}

/// Layers with the weights of others.
fn reordered(detail: String, order: Vec<usize>) -> Edit {
    Edit::new(detail).weight(move |w: &Weight| {
        let (before, rest) = w.name.split_once("layers.")?;
        let (layer, rest) = rest.split_once('.')?;
        let other = *order.get(layer.parse::<usize>().ok()?)?;
        let name = format!("{before}layers.{other}.{rest}");
        (name != w.name).then(|| w.other(&name)).flatten().map(|v| v.to_vec())
    })
}
