//! # Rows of fused q, k and v in another order than they are read in
//!
//! One matrix holds the rows of queries, keys and values: all of q, then of k, then of v; or group by
//! group, each with its query heads, its key head and its value head. It is written in one order and read
//! in the other.
//!
//! ## How it shows
//!
//! q, k and v hold each other's channels; sorted, the values are all there. Every backend shows it, because
//! the file is wrong.
//!
//! ## Seen in
//!
//! - sgl-project/sglang#24321
//!
//! ## Fix
//!
//! Split the fused matrix as the family's converter writes it, and test with more heads than key/value
//! heads.

use std::collections::HashMap;

use crate::scene::short;
use crate::{Edit, Scene};

use firstdiff_model::OpKind;

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, kv)) = heads(scene) else { return vec![] };
    let edit = |inverse| {
        let detail = if inverse {
            "rows of q, k and v lie one after another and are read group by group"
        } else {
            "rows of q, k and v lie group by group and are read one after another"
        };
        reordered(scene, detail, kv, inverse)
    };
    [false, true].into_iter().filter_map(edit).collect()
}

/// Query and key/value heads, where a projection is in the segment.
pub(super) fn heads(scene: &Scene) -> Option<(usize, usize)> {
    ["q_proj", "k_proj", "v_proj"].iter().find(|name| scene.find_tap(name).is_some())?;
    scene.program().ops.iter().find_map(|op| match &op.kind {
        OpKind::AttnScores(s) => Some((s.heads, s.kv_heads)),
        _ => None,
    })
}

/// The rows of q, k and v dealt out to `parts`, each with its share of all three, where they should lie one
/// after another; or the other way round.
pub(super) fn reordered(scene: &Scene, detail: &str, parts: usize, inverse: bool) -> Option<Edit> {
    let (_, kv) = heads(scene)?;
    if parts < 2 || kv % parts != 0 {
        return None;
    }
    // Each weight and bias of a layer's three projections: all three names, and which one it is.
    let mut layers: HashMap<Option<usize>, [Vec<String>; 3]> = HashMap::new();
    for op in &scene.program().ops {
        let which = ["q_proj", "k_proj", "v_proj"].iter().position(|name| *name == short(op));
        if let (Some(which), OpKind::Linear(_)) = (which, &op.kind) {
            let layer = firstdiff_trace::tap::split(&op.tap).0;
            layers.entry(layer).or_default()[which] =
                op.kind.weights().into_iter().map(|(name, _)| name.to_string()).collect();
        }
    }
    let mut triples: HashMap<String, (usize, [String; 3])> = HashMap::new();
    for [q, k, v] in layers.into_values() {
        for ((q, k), v) in q.into_iter().zip(k).zip(v) {
            for (which, name) in [&q, &k, &v].into_iter().enumerate() {
                triples.insert(name.clone(), (which, [q.clone(), k.clone(), v.clone()]));
            }
        }
    }
    Some(Edit::new(detail).weight(move |w| {
        let (which, names) = triples.get(w.name)?;
        let mut rows: Vec<(usize, usize)> = Vec::new(); // matrix and row, in the order of one after another
        let mut dealt: Vec<(usize, usize)> = Vec::new();
        let sizes: Vec<usize> = names.iter().map(|n| w.any(n)?.0.first().copied()).collect::<Option<_>>()?;
        for (part, &size) in sizes.iter().enumerate() {
            rows.extend((0..size).map(|row| (part, row)));
        }
        for rank in 0..parts {
            for (part, &size) in sizes.iter().enumerate() {
                let share = size / parts;
                dealt.extend((rank * share..(rank + 1) * share).map(|row| (part, row)));
            }
        }
        let start: usize = sizes[..*which].iter().sum();
        let width: usize = w.shape.iter().skip(1).product();
        let values: Vec<_> = names.iter().map(|n| Some(w.any(n)?.1)).collect::<Option<_>>()?;
        let mut out = Vec::with_capacity(sizes[*which] * width);
        let places: HashMap<(usize, usize), usize> = dealt.iter().enumerate().map(|(i, at)| (*at, i)).collect();
        for at in start..start + sizes[*which] {
            let (part, row) = if inverse { rows[*places.get(&rows[at])?] } else { dealt[at] };
            out.extend_from_slice(values[part].get(row * width..(row + 1) * width)?);
        }
        Some(out)
    }))
}
