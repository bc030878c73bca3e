//! # Rest of a prompt at wrong positions after a cached prefix
//!
//! A prompt whose beginning is in the prefix cache goes on at another position than the next one: blocks
//! are counted instead of tokens, or one token too few or too many.
//!
//! ## How it shows
//!
//! With a miss all is right. After a hit the rest of the prompt is rotated by the wrong positions, all rows
//! by the same number.
//!
//! ## Seen in
//!
//! - tenstorrent/vllm#415 (probably)
//!
//! ## Fix
//!
//! Start the positions of the rest at the number of cached tokens.

use super::pos_chunk_offset::shifted;
use super::tools::fitted_positions;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let positions = &scene.input().positions;
    if positions.len() < 2 || positions[0] == 0 {
        return vec![];
    }
    let start = positions[0];
    let mut edits = Vec::new();
    for size in [4, 8, 16, 32, 64, 128, 256].into_iter().filter(|size| start.is_multiple_of(*size)) {
        let detail = format!("a prompt resumed at {start} goes on at {}: blocks of {size} are counted, not tokens", start / size);
        edits.extend(shifted(scene, &detail, move |positions, first| {
            if positions.len() > 1 {
                positions.iter_mut().for_each(|p| *p = p.saturating_sub(first) + first / size);
            }
        }));
    }
    let mut offsets = vec![(1, 0), (-1, 0), (i64::from(start), 0)];
    let limit = positions[positions.len() - 1].saturating_mul(4).saturating_add(64);
    let fitted = fitted_positions(scene, limit);
    let offset = fitted.and_then(|fitted| {
        let mut offsets = fitted.iter().zip(positions).map(|(f, p)| i64::from(*f) - i64::from(*p));
        let first = offsets.next()?;
        offsets.all(|o| o == first).then_some(first)
    });
    // All the way back is another class: positions that restart with each chunk.
    offsets.extend(offset.filter(|o| *o != 0 && *o != -i64::from(start)).map(|o| (o, 1)));
    for (offset, parameters) in offsets {
        let detail = format!("a prompt resumed at {start} goes on at {}", i64::from(start) + offset);
        let moved = shifted(scene, &detail, move |positions, _| {
            if positions.len() > 1 {
                positions.iter_mut().for_each(|p| *p = (i64::from(*p) + offset).max(0) as u32);
            }
        });
        edits.extend(moved.into_iter().map(|e| e.fitted(parameters)));
    }
    edits
}
