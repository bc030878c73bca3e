//! # Decoded tokens at another position
//!
//! In decode the rotation's offset is wrong: one too many, the prompt counted twice, a wrong delta. Named
//! with the offset that the angles show.
//!
//! ## How it shows
//!
//! The prompt is right. Decoded tokens are turned by a whole number of positions too much or too little.
//! One position too many keeps a cosine of 0.97.
//!
//! ## Seen in
//!
//! - skyzh/tiny-llm#46
//! - ModelTC/LightLLM#1377
//!
//! ## Fix
//!
//! Count the tokens in the cache once, before the step adds its own.

use super::pos_chunk_offset::shifted;
use super::tools::fitted_positions;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let positions = &scene.input().positions;
    if positions.len() != 1 || positions[0] == 0 {
        return vec![];
    }
    let tokens: usize = scene.steps().iter().take(scene.step).map(|s| s.positions.len()).sum();
    let prompt = scene.steps().first().map_or(0, |s| s.positions.len());
    let mut offsets: Vec<i64> = vec![1, -1, tokens as i64, prompt as i64, -(prompt as i64)];
    let mut fitted = Vec::new();
    let limit = positions[0].saturating_mul(4).saturating_add(64);
    if let Some(&[p]) = fitted_positions(scene, limit).as_deref() {
        fitted.push(i64::from(p) - i64::from(positions[0]));
    }
    offsets.sort_unstable();
    offsets.dedup();
    fitted.retain(|o| *o != 0 && !offsets.contains(o));
    let all = offsets.into_iter().map(|o| (o, 0)).chain(fitted.into_iter().map(|o| (o, 1)));
    all.flat_map(|(offset, parameters)| {
        let detail = format!("decoded tokens are rotated {offset:+} positions off");
        let edits = shifted(scene, &detail, move |positions, _| {
            if positions.len() == 1 {
                positions.iter_mut().for_each(|p| *p = (i64::from(*p) + offset).max(0) as u32);
            }
        });
        edits.into_iter().map(move |e| e.fitted(parameters))
    })
    .collect()
}
