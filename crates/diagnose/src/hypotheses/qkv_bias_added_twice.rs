//! # Bias of q, k or v added more than once
//!
//! Each of several ranks adds the bias before their parts are summed, or a fused kernel adds it and the
//! caller adds it again.
//!
//! ## How it shows
//!
//! Every token is off by a whole multiple of the bias.
//!
//! ## Seen in
//!
//! - no public case read; row-parallel layers invite it
//!
//! ## Fix
//!
//! Add the bias on one rank, or after the sum.

use super::qkv_bias_missing::with_bias_times;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    [2.0, 4.0, 8.0]
        .into_iter()
        .flat_map(|times: f32| with_bias_times(scene, times, &format!("the bias is added {times} times")))
        .collect()
}
