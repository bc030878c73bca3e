//! The order in which taps are computed, as far as names tell.

use std::sync::LazyLock;

use firstdiff_trace::tap;
use firstdiff_trace::taps::{self, Place, TAPS};

/// Sorts taps into the order of execution. Those that no list knows come last in their layer, or in the model.
pub(crate) fn order(name: &str) -> (usize, usize, usize, String) {
    let (layer, rest) = tap::split(name);
    let part = match (layer, taps::find(rest).map(|tap| tap.place)) {
        (Some(_), _) => 1,
        (None, Some(Place::Before)) => 0,
        (None, Some(Place::After)) => 2,
        (None, _) => 3,
    };
    (part, layer.unwrap_or(0), taps::place(rest), rest.to_string())
}

/// For each tap of the list, how many of those that plain decoders have come before it; then how many there are.
static USUAL: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let before = |at: usize| TAPS[..at].iter().filter(|tap| tap.usual).count();
    (0..=TAPS.len()).map(before).collect()
});

/// How many operations have rounded when this tap is computed, in a model of as many layers. Taps that no list
/// knows count as the last of their layer, or of the model.
pub(crate) fn roundings(name: &str, layers: usize) -> usize {
    let (layer, rest) = tap::split(name);
    let in_layer = USUAL[TAPS.len()];
    match layer {
        Some(layer) => layer.saturating_mul(in_layer).saturating_add(2 + USUAL[taps::place(rest)]),
        None if taps::find(rest).is_some_and(|tap| tap.place == Place::Before) => 1,
        None => layers.saturating_mul(in_layer).saturating_add(3),
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
        assert_eq!((roundings("layers.0.attn_norm", 2), roundings("layers.1.out", 2)), (2, 51));
    }

    #[test]
    fn what_a_mixture_of_experts_computes_comes_before_the_layers_output() {
        let names = [
            "mlp_norm",
            "router_logits",
            "router_scores",
            "router_topk",
            "router_weights",
            "experts_out",
            "out",
        ];
        let names = names.map(|name| format!("layers.0.{name}"));
        assert!(names.windows(2).all(|w| order(&w[0]) < order(&w[1])));
        assert!(order("layers.0.colour") > order("layers.0.out") && order("colour") > order("logits"));
    }
}
