//! Llama: SmolLM2, Llama 2 and 3, Mistral-style exports, MiniMind-2.

use firstdiff_checkpoint::Checkpoint;

use super::Family;
use super::decoder::{Decoder, Norm, Shape};
use crate::{Error, Program, Settings};

pub(super) const FAMILY: Family = Family { name: "llama", members: "SmolLM2, Llama 2/3, MiniMind-2", build };

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let hidden = s.extent("hidden_size")?;
    let heads = s.extent_or("num_attention_heads", 32, "Llama")?;
    let kv_heads = s.extent_or("num_key_value_heads", heads, "as many as num_attention_heads")?;
    let head_dim = s.extent_or("head_dim", hidden / heads, "hidden_size / num_attention_heads")?;
    let max_positions = s.extent_or("max_position_embeddings", 2048, "Llama")?;
    let mut m = Decoder::new(s, checkpoint, Shape { hidden, heads, kv_heads, head_dim, max_positions })?;
    let bias = s.flag_or("attention_bias", false, "Llama")?;
    let mlp_bias = s.flag_or("mlp_bias", false, "Llama")?;

    let mut x = m.embed();
    for layer in 0..m.layers {
        m.enter(layer);
        let h = m.norm("attn_norm", x, Norm::Layer("input_layernorm"));
        let q = m.linear("q_proj", h, "self_attn.q_proj", m.q_dim(), bias);
        let k = m.linear("k_proj", h, "self_attn.k_proj", m.kv_dim(), bias);
        let v = m.linear("v_proj", h, "self_attn.v_proj", m.kv_dim(), bias);
        let q = m.rope("q_rope", q, heads);
        let k = m.rope("k_rope", k, kv_heads);
        let o = m.attention(q, k, v, None);
        let o = m.linear("attn_out", o, "self_attn.o_proj", hidden, bias);
        x = m.add("attn_resid", x, o);
        let h = m.norm("mlp_norm", x, Norm::Layer("post_attention_layernorm"));
        let f = m.gated_mlp(h, mlp_bias);
        x = m.add("out", x, f);
    }
    m.logits(x)
}
