//! Qwen2 and Qwen2.5: biases on q, k and v without a flag saying so.

use firstdiff_checkpoint::Checkpoint;

use super::Family;
use super::decoder::{Decoder, Norm, Shape, windows};
use crate::{Error, Program, Settings};

pub(super) const FAMILY: Family = Family { name: "qwen2", members: "Qwen2, Qwen2.5, Qwen2.5-Coder", build };

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let hidden = s.extent("hidden_size")?;
    let heads = s.extent_or("num_attention_heads", 32, "Qwen2")?;
    let kv_heads = s.extent_or("num_key_value_heads", 32, "Qwen2")?;
    let head_dim = s.extent_or("head_dim", hidden / heads, "hidden_size / num_attention_heads")?;
    let max_positions = s.extent_or("max_position_embeddings", 32768, "Qwen2")?;
    let mut m = Decoder::new(s, checkpoint, Shape { hidden, heads, kv_heads, head_dim, max_positions })?;
    let windows = windows(s, m.layers)?;

    let mut x = m.embed();
    for (layer, window) in windows.into_iter().enumerate() {
        m.enter(layer);
        let h = m.norm("attn_norm", x, Norm::Layer("input_layernorm"));
        let q = m.linear("q_proj", h, "self_attn.q_proj", m.q_dim(), true);
        let k = m.linear("k_proj", h, "self_attn.k_proj", m.kv_dim(), true);
        let v = m.linear("v_proj", h, "self_attn.v_proj", m.kv_dim(), true);
        let q = m.rope("q_rope", q, heads);
        let k = m.rope("k_rope", k, kv_heads);
        let o = m.attention(q, k, v, window);
        let o = m.linear("attn_out", o, "self_attn.o_proj", hidden, false);
        x = m.add("attn_resid", x, o);
        let h = m.norm("mlp_norm", x, Norm::Layer("post_attention_layernorm"));
        let f = m.gated_mlp(h, false);
        x = m.add("out", x, f);
    }
    m.logits(x)
}
