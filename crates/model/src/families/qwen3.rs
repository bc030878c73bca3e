//! Qwen3, dense: queries and keys are normalised head by head before they are rotated.

use firstdiff_checkpoint::Checkpoint;

use super::Family;
use super::decoder::{Decoder, Norm, Shape, windows};
use crate::{Error, Program, Settings};

pub(super) const FAMILY: Family = Family { name: "qwen3", members: "Qwen3 dense, MiniMind-3", build };

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let hidden = s.extent("hidden_size")?;
    let heads = s.extent_or("num_attention_heads", 32, "Qwen3")?;
    let kv_heads = s.extent_or("num_key_value_heads", 32, "Qwen3")?;
    let head_dim = s.extent_or("head_dim", 128, "Qwen3")?;
    let max_positions = s.extent_or("max_position_embeddings", 32768, "Qwen3")?;
    let mut m = Decoder::new(s, checkpoint, Shape { hidden, heads, kv_heads, head_dim, max_positions })?;
    let bias = s.flag_or("attention_bias", false, "Qwen3")?;
    let windows = windows(s, m.layers)?;

    let mut x = m.embed();
    for (layer, window) in windows.into_iter().enumerate() {
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
        let f = m.gated_mlp(h, false);
        x = m.add("out", x, f);
    }
    m.logits(x)
}
