//! The order in which taps are computed, as far as names tell.

use firstdiff_trace::tap;

/// Execution order of the standard taps inside a layer.
const LAYER: [&str; 25] = [
    "attn_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "k_cache",
    "v_cache",
    "attn_scores",
    "attn_probs",
    "attn_heads",
    "attn_out",
    "attn_post_norm",
    "attn_resid",
    "mlp_norm",
    "router_logits",
    "router_topk",
    "gate_proj",
    "up_proj",
    "mlp_act",
    "mlp_out",
    "mlp_post_norm",
    "out",
];

/// Sorts taps into the order of execution.
pub(crate) fn order(name: &str) -> (usize, usize, usize, String) {
    let (layer, rest) = tap::split(name);
    let place = LAYER.iter().position(|t| *t == rest).unwrap_or(LAYER.len());
    let global = match (layer, rest) {
        (None, "embed") => 0,
        (Some(_), _) => 1,
        (None, "final_norm") => 2,
        (None, "logits") => 3,
        _ => 4,
    };
    (global, layer.unwrap_or(0), place, rest.to_string())
}
