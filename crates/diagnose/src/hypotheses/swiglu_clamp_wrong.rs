//! # The bound on gate and up
//!
//! Gate and up are cut off at `swiglu_limit`: the gate from above, before its activation, up on both sides; in routed experts and in
//! the shared one. The engine does not, or cuts the gate off on both sides or after the activation.
//!
//! ## How it shows
//!
//! `experts_out` or `shared_act` are wrong at the few tokens whose values pass the bound; with the released 10.0 that is rare.
//!
//! ## Seen in
//!
//! - public ports leave the shared expert unbounded
//!
//! ## Fix
//!
//! `silu(min(gate, limit)) * clip(up, -limit, limit)`, for every expert.

use firstdiff_model::OpKind;
use firstdiff_model::ops::{GateLimit, Limit};

use crate::{Edit, Scene};

/// What an engine makes of the bound.
type Change = fn(&mut Option<Limit>);

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let routed = scene.find(|k| matches!(k, OpKind::Experts(e) if e.limit.is_some())).is_some();
    let shared = scene.find(|k| matches!(k, OpKind::GatedAct(act) if act.limit.is_some())).is_some();
    if !routed && !shared {
        return vec![];
    }
    let edit = |what: &str, change: Change, both: bool| {
        let which = match both {
            true => "",
            false if shared => " (shared expert alone)",
            false => " (routed experts alone)",
        };
        Edit::new(format!("{what}{which}")).ops(move |op| match &mut op.kind {
            OpKind::Experts(experts) if both || routed => change(&mut experts.limit),
            OpKind::GatedAct(act) if both || shared => change(&mut act.limit),
            _ => {}
        })
    };
    let ways: [(&str, Change); 3] = [
        ("not bounded", |limit| *limit = None),
        ("the gate is bounded on both sides", |limit| with(limit, GateLimit::BothSides)),
        ("the gate is bounded after its activation", |limit| with(limit, GateLimit::Activated)),
    ];
    ways.into_iter().flat_map(|(what, change)| [true, false].map(|both| edit(what, change, both))).collect()
}

fn with(limit: &mut Option<Limit>, gate: GateLimit) {
    if let Some(limit) = limit {
        limit.gate = gate;
    }
}
