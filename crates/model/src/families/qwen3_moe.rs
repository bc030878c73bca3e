//! Qwen3, mixture of experts: Qwen3's attention, and in all layers but a few several small MLPs of which
//! a router chooses some for each token.

use firstdiff_checkpoint::Checkpoint;

use super::Family;
use super::decoder::{Decoder, Mixture, Norm, Shape, refuse_groups};
use crate::{Error, Program, Settings};

pub(super) const FAMILY: Family =
    Family { name: "qwen3_moe", members: "Qwen3 MoE (30B-A3B, 235B-A22B), MiniMind-3 MoE", build };

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let hidden = s.extent("hidden_size")?;
    let heads = s.extent_or("num_attention_heads", 32, "Qwen3-MoE")?;
    let kv_heads = s.extent_or("num_key_value_heads", 4, "Qwen3-MoE")?;
    let head_dim = s.extent_or("head_dim", hidden / heads, "hidden_size / num_attention_heads")?;
    let max_positions = s.extent_or("max_position_embeddings", 32768, "Qwen3-MoE")?;
    let mut m = Decoder::new(s, checkpoint, Shape { hidden, heads, kv_heads, head_dim, max_positions })?;
    let bias = s.flag_or("attention_bias", false, "Qwen3-MoE")?;
    let window = match s.flag_or("use_sliding_window", false, "Qwen3-MoE")? {
        true => Some(s.extent_or("sliding_window", 4096, "Qwen3-MoE")?),
        false => None,
    };
    let mixture = mixture(s)?;
    let is_sparse = sparse_layers(s)?;

    let mut x = m.embed();
    for layer in 0..m.layers {
        m.enter(layer);
        let h = m.norm("attn_norm", x, Norm::Layer("input_layernorm"));
        let q = m.linear("q_proj", h, "self_attn.q_proj", m.q_dim(), bias);
        let k = m.linear("k_proj", h, "self_attn.k_proj", m.kv_dim(), bias);
        let v = m.linear("v_proj", h, "self_attn.v_proj", m.kv_dim(), bias);
        let q = m.norm("q_norm", q, Norm::Heads("self_attn.q_norm", heads));
        let k = m.norm("k_norm", k, Norm::Heads("self_attn.k_norm", kv_heads));
        let q = m.rope("q_rope", q, heads);
        let k = m.rope("k_rope", k, kv_heads);
        let o = m.attention(q, k, v, window);
        let o = m.linear("attn_out", o, "self_attn.o_proj", hidden, bias);
        x = m.add("attn_resid", x, o);
        let h = m.norm("mlp_norm", x, Norm::Layer("post_attention_layernorm"));
        let f = if is_sparse(layer) { m.mixture(h, &mixture) } else { m.gated_mlp(h, false) };
        x = m.add("out", x, f);
    }
    m.logits(x)
}

/// The router's settings. Released files say `num_experts`, transformers 5 writes `num_local_experts`.
fn mixture(s: &Settings) -> Result<Mixture, Error> {
    let experts = match s.optional_extent("num_experts")? {
        Some(experts) => experts,
        None => s.extent_or("num_local_experts", 128, "Qwen3-MoE")?,
    };
    let chosen = s.extent_or("num_experts_per_tok", 8, "Qwen3-MoE")?;
    if chosen > experts {
        return Err(s.wrong("num_experts_per_tok", format!("is {chosen}, but there are {experts} experts")));
    }
    refuse_groups(s, "Qwen3-MoE")?;
    let scoring = s.string_or("scoring_func", "softmax", "Qwen3-MoE")?;
    if scoring != "softmax" {
        return Err(s.wrong("scoring_func", format!("is '{scoring}'; this family has softmax")));
    }
    Ok(Mixture {
        experts,
        chosen,
        inner: s.extent_or("moe_intermediate_size", 768, "Qwen3-MoE")?,
        normalise: s.flag_or("norm_topk_prob", false, "Qwen3-MoE")?.then_some(0.0),
        scale: s.positive_or("routed_scaling_factor", 1.0, "Qwen3-MoE")?,
    })
}

/// Which layers have experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`.
fn sparse_layers(s: &Settings) -> Result<impl Fn(usize) -> bool, Error> {
    let step = s.extent_or("decoder_sparse_step", 1, "Qwen3-MoE")?;
    let dense = match s.raw("mlp_only_layers") {
        None => vec![],
        Some(list) => {
            let numbers = list.as_array().and_then(|l| l.iter().map(serde_json::Value::as_u64).collect());
            let numbers: Vec<u64> = numbers.ok_or_else(|| {
                s.wrong("mlp_only_layers", format!("is {list}; numbers of layers are expected"))
            })?;
            s.note_read("mlp_only_layers", list);
            numbers
        }
    };
    Ok(move |layer: usize| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step))
}
