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

/// How many operations have rounded when this tap is computed, in a model of as many layers. Taps that no list
/// knows count as the last of their layer, or of the model.
pub(crate) fn roundings(name: &str, layers: usize) -> usize {
    let (layer, rest) = tap::split(name);
    let place = LAYER.iter().position(|t| *t == rest).unwrap_or(LAYER.len());
    match layer {
        Some(layer) => layer.saturating_mul(LAYER.len()).saturating_add(2 + place),
        None if rest == "embed" => 1,
        None => layers.saturating_mul(LAYER.len()).saturating_add(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_ordered_as_they_are_computed() {
        let names = [
            "embed",
            "layers.0.attn_norm",
            "layers.0.out",
            "layers.2.q_proj",
            "layers.10.q_proj",
            "final_norm",
            "logits",
        ];
        assert!(names.windows(2).all(|w| order(w[0]) < order(w[1])));
        assert!(names.windows(2).all(|w| roundings(w[0], 11) <= roundings(w[1], 11)));
    }
}
