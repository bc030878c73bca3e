//! # The gate is bounded as up is
//!
//! The gate is to be cut off from above only, before its activation; up on both sides. The engine cuts the gate off on
//! both sides too, or after the activation.
//!
//! ## How it shows
//!
//! `experts_out` or `shared_act` are wrong at the few tokens whose gate passes the bound.
//!
//! ## Seen in
//!
//! - anthony-chaudhary/fak#4837
//!
//! ## Fix
//!
//! `silu(min(gate, limit)) * clip(up, -limit, limit)`.

use firstdiff_model::ops::{GateLimit, Limit};

use super::tools::bounded;
use crate::{Edit, Scene};

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    bounded(
        scene,
        &[
            ("the gate is bounded on both sides", |limit| with(limit, GateLimit::BothSides)),
            ("the gate is bounded after its activation", |limit| with(limit, GateLimit::Activated)),
        ],
    )
}

fn with(limit: &mut Option<Limit>, gate: GateLimit) {
    if let Some(limit) = limit {
        limit.gate = gate;
    }
}
