//! # No compressed entry is attended to
//!
//! Layers with compressed keys attend to the window and to entries. The engine gives attention none of them (`n_comp = 0`).
//!
//! ## How it shows
//!
//! `visible_keys` shows the window alone. Short prompts hide it: no entry is complete yet.
//!
//! ## Seen in
//!
//! - a DeepSeek-V4 kernel set whose production kernel ran with `n_comp = 0`
//!
//! ## Fix
//!
//! Hand the number of entries, and the entries, to the attention kernel.

use super::tools::visible_keys;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    visible_keys(scene, "no entry is attended to", |seen| seen.entries(|_, _, _, _| false))
}
