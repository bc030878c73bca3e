//! The taps: one list of names, axes and meanings, in the order in which they are computed.
//!
//! docs/TRACE.md's tables, the order that `diff` goes by and the recorders' own list are held to it by tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use crate::tap;

/// Where a tap stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before the layers.
    Before,
    /// In each layer.
    Layer,
    /// After the layers.
    After,
}

/// One tap.
#[derive(Clone, Copy, Debug)]
pub struct Tap {
    /// Its name, without `layers.N.`.
    pub name: &'static str,
    /// Where it stands.
    pub place: Place,
    /// Its axes; docs/TRACE.md explains the letters.
    pub axes: &'static str,
    /// Whether values go around it: where it is right, what comes before it need not be.
    pub branch: bool,
    /// Whether plain decoders have it.
    pub usual: bool,
    /// Other names: module paths of Hugging Face's models inside a layer (`self_attn.q_proj`), or of the whole model
    /// (`embed_tokens`), names of ggml's callback (`Qcur`), and of the weights in GGUF files whose products they are (`attn_q`).
    pub aliases: &'static [&'static str],
}

const fn tap(name: &'static str, axes: &'static str, aliases: &'static [&'static str]) -> Tap {
    Tap { name, place: Place::Layer, axes, branch: false, usual: false, aliases }
}

const fn branch(name: &'static str, axes: &'static str, aliases: &'static [&'static str]) -> Tap {
    Tap { branch: true, ..tap(name, axes, aliases) }
}

const fn before(name: &'static str, axes: &'static str, aliases: &'static [&'static str]) -> Tap {
    Tap { place: Place::Before, ..tap(name, axes, aliases) }
}

const fn after(name: &'static str, axes: &'static str, aliases: &'static [&'static str]) -> Tap {
    Tap { place: Place::After, ..tap(name, axes, aliases) }
}

impl Tap {
    const fn usual(self) -> Tap {
        Tap { usual: true, ..self }
    }
}

/// Every tap, in the order of execution. Of values that are computed side by side, the one that is named first in
/// docs/TRACE.md stands first.
pub const TAPS: &[Tap] = &[
    before("embed", "T,d", &["embed_tokens", "inp_embd"]),
    before("hc_streams", "T,n,d", &[]),
    // Into attention.
    branch("hc_attn_norm", "T,n*d", &[]),
    branch("hc_attn_proj", "T,(2+n)*n", &[]),
    branch("hc_attn_pre", "T,n", &[]),
    branch("hc_attn_post", "T,n", &[]),
    branch("hc_attn_mix", "T,n,n", &[]),
    tap("hc_attn_in", "T,d", &[]),
    tap("attn_norm", "T,d", &["input_layernorm", "attn_norm"]).usual(),
    branch("q_a_proj", "T,q rank", &["self_attn.q_a_proj"]),
    branch("q_a_norm", "T,q rank", &["self_attn.q_a_layernorm"]),
    branch("qkv_proj", "T,(H+2Hkv)*D", &["self_attn.qkv_proj"]),
    branch("q_proj", "T,H*D", &["self_attn.q_proj", "self_attn.q_b_proj", "attn_q"]).usual(),
    branch("k_proj", "T,Hkv*D", &["self_attn.k_proj", "attn_k"]).usual(),
    branch("v_proj", "T,Hkv*D", &["self_attn.v_proj", "attn_v"]).usual(),
    branch("kv_proj", "T,D", &[]),
    branch("kv_a_proj", "T,r+Dr", &["self_attn.kv_a_proj_with_mqa"]),
    branch("q_norm", "T,H,D", &["self_attn.q_norm", "Qcur_normed", "attn_q_norm"]).usual(),
    branch("k_norm", "T,Hkv,D", &["self_attn.k_norm", "Kcur_normed", "attn_k_norm"]).usual(),
    branch("kv_norm", "T,D", &[]),
    branch("kv_a_norm", "T,r", &["self_attn.kv_a_layernorm"]),
    branch("q_rope", "T,H,D", &["Qcur"]).usual(),
    branch("k_rope", "T,Hkv,D", &["Kcur"]).usual(),
    branch("kv_rope", "T,D", &[]),
    branch("k_pe_rope", "T,Dr", &[]),
    branch("kv_quant", "T,D", &[]),
    branch("kv_b_proj", "T,H*(Dn+Dv)", &["self_attn.kv_b_proj"]),
    branch("q_absorbed", "T,H,r", &[]),
    branch("k_cache", "K,Hkv,D", &[]).usual(),
    branch("v_cache", "K,Hkv,D", &[]).usual(),
    branch("kv_cache", "K,D", &[]),
    branch("kv_latent_cache", "K,r", &[]),
    branch("k_pe_cache", "K,Dr", &[]),
    branch("comp_kv", "T,D", &[]),
    branch("comp_gate", "T,D", &[]),
    branch("comp_pool", "new entries,D", &[]),
    branch("comp_norm", "new entries,D", &[]),
    branch("kv_entry", "new entries,D", &[]),
    branch("entry_quant", "new entries,D", &[]),
    branch("kv_entries", "E,D", &[]),
    branch("index_q_proj", "T,Hi*Di", &[]),
    branch("index_q", "T,Hi*Di", &[]),
    branch("index_q_quant", "T,Hi*Di", &[]),
    branch("index_weights", "T,Hi", &[]),
    branch("index_kv", "T,Di", &[]),
    branch("index_gate", "T,Di", &[]),
    branch("index_pool", "new entries,Di", &[]),
    branch("index_norm", "new entries,Di", &[]),
    branch("index_entry", "new entries,Di", &[]),
    branch("index_entry_quant", "new entries,Di", &[]),
    branch("index_entries", "E,Di", &[]),
    branch("index_scores", "T,E", &[]),
    branch("index_topk", "T,k", &[]),
    branch("attn_keys", "K+E,D", &[]),
    branch("visible_keys", "T,K+E", &[]),
    tap("attn_scores", "H,T,K", &["kq"]).usual(),
    tap("attn_probs", "H,T,K", &["kq_soft_max", "kq_soft_max_ext"]).usual(),
    branch("attn_latent", "T,H,r", &[]),
    tap("attn_heads", "T,H,D", &["self_attn.attn", "kqv_out"]).usual(),
    tap("attn_unrotated", "T,H,D", &[]),
    branch("attn_gate", "T,H,D", &[]),
    tap("attn_gated", "T,H,D", &[]),
    tap("attn_groups", "T,G,rank", &[]),
    // Convolutions, linear attention and state space models.
    branch("conv_state_in", "S,C,k-1", &[]),
    branch("conv_in", "T,C", &[]),
    tap("conv_out", "T,C", &[]),
    branch("conv_state", "S,C,k-1", &[]),
    branch("lin_q", "T,Hk,Dk", &[]),
    branch("lin_k", "T,Hk,Dk", &[]),
    branch("lin_v", "T,Hv,Dv", &[]),
    branch("beta", "T,Hv", &[]),
    branch("decay", "T,Hv", &[]),
    branch("z", "T,Hv*Dv", &[]),
    branch("state_in", "S,Hv,Dk,Dv", &[]),
    tap("lin_out", "T,Hv,Dv", &[]),
    branch("state", "S,Hv,Dk,Dv", &[]),
    tap("norm_gated", "T,Hv*Dv", &[]),
    branch("ssm_x", "T,H,P", &[]),
    branch("ssm_b", "T,G,N", &[]),
    branch("ssm_c", "T,G,N", &[]),
    branch("dt", "T,H", &[]),
    tap("ssm_out", "T,H,P", &[]),
    branch("ssm_state", "S,H,P,N", &[]),
    // Out of attention.
    tap("attn_out", "T,d", &["self_attn.o_proj", "self_attn", "attn_out", "attn_output"]).usual(),
    tap("attn_post_norm", "T,d", &["attn_post_norm", "post_attention_norm"]).usual(),
    tap("attn_resid", "T,d", &["ffn_inp", "sa_out"]).usual(),
    branch("hc_ffn_norm", "T,n*d", &[]),
    branch("hc_ffn_proj", "T,(2+n)*n", &[]),
    branch("hc_ffn_pre", "T,n", &[]),
    branch("hc_ffn_post", "T,n", &[]),
    branch("hc_ffn_mix", "T,n,n", &[]),
    tap("hc_ffn_in", "T,d", &[]),
    tap("mlp_norm", "T,d", &["pre_feedforward_layernorm", "ffn_norm"]).usual(),
    // The MLP.
    branch("router_logits", "T,E", &["mlp.gate", "ffn_moe_logits", "ffn_gate_inp"]).usual(),
    branch("router_scores", "T,E", &["ffn_moe_probs"]),
    branch("router_topk", "T,k", &["ffn_moe_topk"]).usual(),
    branch("router_weights", "T,k", &["ffn_moe_weights_norm"]),
    branch("experts_out", "T,d", &["mlp.experts", "ffn_moe_out"]),
    branch("shared_gate_proj", "T,F", &["mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_proj"]),
    branch("shared_up_proj", "T,F", &["mlp.shared_expert.up_proj", "mlp.shared_experts.up_proj"]),
    branch("shared_act", "T,F", &[]),
    branch("shared_out", "T,d", &["mlp.shared_experts", "ffn_shexp"]),
    branch("gate_up_proj", "T,2*F", &["mlp.gate_up_proj"]),
    branch("gate_proj", "T,F", &["mlp.gate_proj", "ffn_gate"]).usual(),
    branch("up_proj", "T,F", &["mlp.up_proj", "ffn_up"]).usual(),
    tap("mlp_act", "T,F", &["ffn_swiglu", "ffn_gate_par"]).usual(),
    tap("mlp_out", "T,d", &["mlp.down_proj", "mlp", "ffn_out", "ffn_down"]).usual(),
    tap("mlp_post_norm", "T,d", &["post_feedforward_layernorm", "ffn_post_norm", "post_ffw_norm"]).usual(),
    branch("ple_gate", "T,P", &["per_layer_input_gate"]),
    branch("ple_proj", "T,d", &["per_layer_projection"]),
    branch("ple_norm", "T,d", &["post_per_layer_input_norm"]),
    tap("out", "T,d", &["l_out"]).usual(),
    // After the layers.
    after("hc_head_norm", "T,n*d", &[]),
    after("hc_head_proj", "T,n", &[]),
    after("hc_head_pre", "T,n", &[]),
    after("hc_head", "T,d", &[]),
    after("final_norm", "T,d", &["norm", "result_norm"]),
    after("logits_raw", "T,V", &[]),
    after("logits", "T,V", &["lm_head", "result_output"]),
];

/// By name: its place in the list.
static PLACES: LazyLock<HashMap<&str, usize>> =
    LazyLock::new(|| TAPS.iter().enumerate().map(|(i, tap)| (tap.name, i)).collect());

/// By alias: the tap.
static ALIASES: LazyLock<HashMap<&str, &Tap>> = LazyLock::new(|| {
    TAPS.iter().flat_map(|tap| tap.aliases.iter().map(move |alias| (*alias, tap))).collect()
});

/// A tap by its name, with or without `layers.N.`.
pub fn find(name: &str) -> Option<&'static Tap> {
    PLACES.get(tap::split(name).1).map(|&place| &TAPS[place])
}

/// Where a tap stands in the order of execution: past all others where no list knows it.
pub fn place(name: &str) -> usize {
    PLACES.get(tap::split(name).1).copied().unwrap_or(TAPS.len())
}

/// Whether values go around a tap.
pub fn is_branch(name: &str) -> bool {
    find(name).is_some_and(|tap| tap.branch)
}

/// The list as JSON, for programs that do not read Rust: `recorders/python/src/firstdiff/taps.json`.
pub fn json() -> String {
    let entry = |tap: &Tap| {
        let place = match tap.place {
            Place::Before => "before",
            Place::Layer => "layer",
            Place::After => "after",
        };
        let text = |s: &str| serde_json::Value::from(s).to_string();
        let aliases: Vec<String> = tap.aliases.iter().map(|alias| text(alias)).collect();
        format!(
            "  {{\"name\": {}, \"place\": \"{place}\", \"axes\": {}, \"branch\": {}, \"aliases\": [{}]}}",
            text(tap.name),
            text(tap.axes),
            tap.branch,
            aliases.join(", ")
        )
    };
    format!("[\n{}\n]\n", TAPS.iter().map(entry).collect::<Vec<_>>().join(",\n"))
}

/// The tap that a name of Hugging Face's modules, of ggml's callback or of SGLang's dumper means: `layers.0.q_proj` for
/// `model.layers.0.self_attn.q_proj`. `None` where it is a tap's own name, or means none.
///
/// `sandwich`: whether the model normalises what its branches give, as Gemma does; there `post_attention_layernorm` comes
/// before the residual is added, elsewhere after.
pub fn meant(name: &str, sandwich: bool) -> Option<String> {
    if find(name).is_some_and(|tap| (tap.place == Place::Layer) == tap::split(name).0.is_some()) {
        return None;
    }
    let name = name.strip_prefix("non_intrusive__").unwrap_or(name);
    let name = name.strip_suffix(".output").unwrap_or(name);
    let named = |alias: &str, layer: Option<usize>| -> Option<String> {
        let of_norm = || match (alias, sandwich) {
            ("post_attention_layernorm", true) => find("attn_post_norm"),
            ("post_attention_layernorm", false) => find("mlp_norm"),
            _ => None,
        };
        let tap = ALIASES.get(alias).copied().or_else(of_norm)?;
        match (tap.place, layer) {
            (Place::Layer, Some(layer)) => Some(tap::in_layer(layer, tap.name)),
            (Place::Before | Place::After, None) => Some(tap.name.to_string()),
            _ => None,
        }
    };
    // ggml: a name and a layer, `Qcur-0`.
    if let Some((alias, layer)) = name.rsplit_once('-')
        && let Ok(layer) = layer.parse()
        && !alias.contains('.')
    {
        return named(alias, Some(layer));
    }
    // A module inside a layer, whatever it is inside of; the layer itself gives its output.
    let inside = name.find("layers.").filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.');
    if let Some((number, rest)) =
        inside.map(|at| &name[at + "layers.".len()..]).map(|rest| match rest.split_once('.') {
            Some((number, rest)) => (number, rest),
            None => (rest, ""),
        })
    {
        let layer = number.parse().ok()?;
        return if rest.is_empty() { Some(tap::in_layer(layer, "out")) } else { named(rest, Some(layer)) };
    }
    named(name, None).or_else(|| named(name.rsplit('.').next()?, None).filter(|_| name.starts_with("model.")))
}

/// Gives values that are recorded under another name that of their tap, where that is free.
pub(crate) fn rename<T>(taps: &mut BTreeMap<String, T>, sandwich: bool) {
    let sandwich = sandwich || taps.keys().any(|name| name.contains("pre_feedforward_layernorm"));
    let others: Vec<(String, String)> =
        taps.keys().filter_map(|name| Some((name.clone(), meant(name, sandwich)?))).collect();
    // Of two names for one tap, that which its list has first: a module before the one around it.
    let rank = |name: &str, tap: &str| {
        let aliases = find(tap).map_or(&[][..], |tap| tap.aliases);
        aliases.iter().position(|alias| name.ends_with(alias)).unwrap_or(aliases.len())
    };
    let mut others = others;
    others.sort_by_key(|(name, tap)| (tap.clone(), rank(name, tap)));
    for (name, tap) in others {
        if !taps.contains_key(&tap)
            && let Some(value) = taps.remove(&name)
        {
            taps.insert(tap, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_every_alias_means_one_tap() {
        assert_eq!(PLACES.len(), TAPS.len(), "a name is listed twice");
        let aliases = TAPS.iter().flat_map(|tap| tap.aliases).count();
        assert_eq!(ALIASES.len(), aliases, "an alias is listed twice");
    }

    #[test]
    fn other_names_are_understood() {
        for (name, tap) in [
            ("model.layers.0.self_attn.q_proj", "layers.0.q_proj"),
            ("layers.12.self_attn.o_proj", "layers.12.attn_out"),
            ("model.language_model.layers.3.mlp.down_proj.output", "layers.3.mlp_out"),
            ("model.layers.1", "layers.1.out"),
            ("model.layers.1.post_attention_layernorm", "layers.1.mlp_norm"),
            ("model.embed_tokens", "embed"),
            ("model.norm", "final_norm"),
            ("lm_head", "logits"),
            ("Qcur-0", "layers.0.q_rope"),
            ("attn_norm-7", "layers.7.attn_norm"),
            ("l_out-0", "layers.0.out"),
            ("ffn_out-2", "layers.2.mlp_out"),
            ("kqv_out-2", "layers.2.attn_heads"),
            ("result_norm", "final_norm"),
            ("result_output", "logits"),
            ("non_intrusive__model.layers.2.self_attn.qkv_proj.output", "layers.2.qkv_proj"),
        ] {
            assert_eq!(meant(name, false).as_deref(), Some(tap), "{name}");
        }
        assert_eq!(
            meant("model.layers.1.post_attention_layernorm", true).as_deref(),
            Some("layers.1.attn_post_norm")
        );
    }

    #[test]
    fn a_taps_own_name_and_names_of_nothing_stay() {
        for name in [
            "layers.0.q_proj",
            "layers.0.attn_norm",
            "logits",
            "embed",
            "layers.0.colour",
            "colour",
            "model.layers.x.mlp",
            "model.layers.0.mlp.act_fn",
            "a.norm",
            "vision.lm_head",
            "Qcur-x",
            "-3",
            "layers.",
            "",
        ] {
            assert_eq!(meant(name, false), None, "{name}");
        }
    }

    #[test]
    fn a_value_under_its_own_name_goes_before_others() {
        let mut taps: BTreeMap<String, i32> = [
            ("layers.0.attn_out", 1),
            ("model.layers.0.self_attn.o_proj", 2),
            ("model.layers.1.self_attn", 3),
            ("model.layers.1.self_attn.o_proj", 4),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
        rename(&mut taps, false);
        assert_eq!((taps["layers.0.attn_out"], taps["layers.1.attn_out"]), (1, 4));
        assert_eq!(taps.len(), 4, "what has no place keeps its name");
    }
}
