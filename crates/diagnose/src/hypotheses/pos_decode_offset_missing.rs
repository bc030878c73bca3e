//! # Every decoded token at position 0
//!
//! In decode the rotation gets no offset: the row's index in the call, 0, is taken for its position.
//!
//! ## How it shows
//!
//! The prompt is right. From the first decoded token on, rotated queries and keys equal what they were
//! before the rotation.
//!
//! ## Seen in
//!
//! - Blaizzy/mlx-vlm#1983
//! - RobertCsordas/moeut#6
//!
//! ## Fix
//!
//! Pass the number of cached tokens to the rotation.

use super::pos_chunk_offset::shifted;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if scene.input().positions.len() != 1 || scene.input().positions[0] == 0 {
        return vec![];
    }
    shifted(scene, "rotated as if at position 0", |positions, _| {
        if positions.len() == 1 {
            positions.iter_mut().for_each(|p| *p = 0);
        }
    })
}
