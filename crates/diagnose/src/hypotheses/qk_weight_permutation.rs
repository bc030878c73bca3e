//! # Rows of q and k in the other rotation's order
//!
//! Converters reorder the rows of the query and key projections for engines that rotate neighbouring
//! channels. Here they are in that order and should not be, or were put back though they never were.
//!
//! ## How it shows
//!
//! The projection's channels are the right ones in other places, from the first token on. Norms are
//! unchanged. In layers without rotation attention's output is right.
//!
//! ## Seen in
//!
//! - jzhang38/TinyLlama#24
//! - ooples/AiDotNet#2074
//! - mattn/tensai#57
//!
//! ## Fix
//!
//! Apply the permutation exactly once: with llama.cpp's converter, `llama` files hold permuted rows,
//! `qwen2` and `qwen3` files do not.

use firstdiff_model::OpKind;

use crate::scene::short;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let mut present = vec![];
    for name in ["q_proj", "k_proj"] {
        if scene.find_tap(name).is_some() {
            present.push(name);
        }
    }
    if present.is_empty() {
        return vec![];
    }
    let Some(dim) = scene.program().ops.iter().find_map(|op| match &op.kind {
        OpKind::AttnScores(s) => Some(s.dim),
        _ => None,
    }) else {
        return vec![];
    };
    let mut sets: Vec<Vec<&'static str>> = vec![vec!["q_proj", "k_proj"]];
    if present.len() > 1 {
        sets.extend([vec!["q_proj"], vec!["k_proj"]]);
    }
    let mut edits = Vec::new();
    for set in sets {
        let rows: Vec<String> = scene
            .program()
            .ops
            .iter()
            .filter(|op| set.contains(&short(op)))
            .flat_map(|op| op.kind.weights().into_iter().map(|(name, _)| name.to_string()))
            .collect();
        for neighbours in [true, false] {
            let rows = rows.clone();
            let what = if neighbours {
                "are in the order for rotating neighbours"
            } else {
                "were put back from the order for rotating neighbours, in which they never were"
            };
            edits.push(Edit::new(format!("rows of {} {what}", set.join(" and "))).weight(move |w| {
                if !rows.iter().any(|r| r == w.name) {
                    return None;
                }
                let (n, width) = (*w.shape.first()?, w.shape.iter().skip(1).product::<usize>());
                let values = w.values()?;
                let half = dim / 2;
                let from = |i: usize| if neighbours { i / 2 + i % 2 * half } else if i < half { 2 * i } else { 2 * (i - half) + 1 };
                Some((0..n).flat_map(|r| {
                    let row = r / dim * dim + from(r % dim);
                    values[row * width..(row + 1) * width].to_vec()
                }).collect())
            }));
        }
    }
    edits
}
