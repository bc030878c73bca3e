//! # Sliding window not applied
//!
//! Layers with a window see everything.
//!
//! ## How it shows
//!
//! Right up to `w` tokens, wrong after it, in windowed layers only.
//!
//! ## Seen in
//!
//! - lablup/mlxcel#495
//! - rajveer43/VeloxQuant-MLX#274
//!
//! ## Fix
//!
//! Mask by window in the layers that have one.

use super::swa_off_by_one::{windows, with_window};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    if windows(scene).is_empty() {
        return vec![];
    }
    vec![with_window("windowed layers see everything".into(), |_| None)]
}
