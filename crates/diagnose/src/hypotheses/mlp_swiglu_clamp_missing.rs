//! # Gate and up are not bounded
//!
//! Gate and up are to be cut off at `swiglu_limit` before they are multiplied. The engine does not, in all experts, or in the
//! shared one alone.
//!
//! ## How it shows
//!
//! `experts_out` or `shared_act` are wrong at the few tokens whose values pass the bound; with the released 10.0 that is rare.
//!
//! ## Seen in
//!
//! - jundot/omlx#2571
//! - AtomicBot-ai/atomic-llama-cpp-turboquant#67
//! - JustVugg/colibri#1520
//! - hw-native-sys/pypto-lib#470
//!
//! ## Fix
//!
//! `silu(min(gate, limit)) * clip(up, -limit, limit)`, for every expert, the shared one included.

use super::tools::bounded;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    bounded(scene, &[("not bounded", |limit| *limit = None)])
}
