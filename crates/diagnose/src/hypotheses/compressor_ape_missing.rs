//! # The compressor's position bias is not added
//!
//! Each place in a block has a bias that is added to the gates before the softmax. The engine leaves it out.
//!
//! ## How it shows
//!
//! `comp_pool` and `index_pool` are wrong in every entry.
//!
//! ## Seen in
//!
//! - no public case read; a test of a port of DeepSeek-V4 plants it
//!
//! ## Fix
//!
//! Add `ape[j]` (`position_bias`) to the gates of the j-th token of each block.

use super::tools::{Apes, apes};
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Apes { all, .. } = apes(scene, |_| true);
    if all.is_empty() {
        return vec![];
    }
    vec![Edit::new("no position bias").weight(move |w| {
        all.get(w.name)?;
        Some(vec![0.0; w.shape.iter().product()])
    })]
}
