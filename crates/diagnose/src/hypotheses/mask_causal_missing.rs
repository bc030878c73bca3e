//! # No causal mask
//!
//! In a prompt every row sees every key, later ones too.
//!
//! ## How it shows
//!
//! The last row of a prompt is right, all others are not. Changing a later token changes earlier rows.
//! Decode is right on its own inputs.
//!
//! ## Seen in
//!
//! - osaurus-ai/vmlx-swift#185
//!
//! ## Fix
//!
//! Mask keys whose position exceeds the row's.

use super::mask_off_by_one::with_positions;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    with_positions(scene, "every row sees all keys, later ones too", |positions| {
        let last = positions.iter().copied().max().unwrap_or(0);
        positions.iter_mut().for_each(|p| *p = last);
    })
}
