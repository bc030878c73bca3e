//! Gemma 3, text: scaled embeddings, norms before and after attention and MLP, and layers that see a
//! window of the text with frequencies of their own, between layers that see all of it.

use firstdiff_checkpoint::{Checkpoint, Format};
use serde_json::Value;

use super::Family;
use super::decoder::{Decoder, Habits, Norm, Shape};
use crate::ops::NormForm;
use crate::rope::{self, RopeConfig};
use crate::{Error, Program, Settings};

pub(super) const FAMILY: Family =
    Family { name: "gemma3_text", members: "Gemma 3, its text model (270M to 27B)", build };

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let hidden = s.extent("hidden_size")?;
    let heads = s.extent_or("num_attention_heads", 8, "Gemma 3")?;
    let kv_heads = s.extent_or("num_key_value_heads", 4, "Gemma 3")?;
    let head_dim = s.extent_or("head_dim", 256, "Gemma 3")?;
    let max_positions = s.extent_or("max_position_embeddings", 131_072, "Gemma 3")?;
    let habits = Habits {
        // llama.cpp's converter has added the 1 already.
        norm: if checkpoint.format() == Format::Gguf { NormForm::Once } else { NormForm::OnePlus },
        tied: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        embed_scale: (hidden as f64).sqrt(),
        score_scale: Some(s.positive_or("query_pre_attn_scalar", 256.0, "Gemma 3")?.powf(-0.5)),
        logit_cap: cap(s, "final_logit_softcapping")?,
        ..Habits::default()
    };
    if cap(s, "attn_logit_softcapping")?.is_some() {
        s.note("attn_logit_softcapping", "not applied", "Gemma 3 has it in its configuration only");
    }
    if s.flag_or("use_bidirectional_attention", false, "Gemma 3")? {
        return Err(s.wrong("use_bidirectional_attention", "is true; only causal attention is supported"));
    }
    let shape = Shape { hidden, heads, kv_heads, head_dim, max_positions };
    let (global, local) = ropes(s, shape)?;
    let mut m = Decoder::with(s, checkpoint, shape, habits)?;
    let bias = s.flag_or("attention_bias", false, "Gemma 3")?;
    let windows = windows(s, m.layers)?;

    let mut x = m.embed();
    for (layer, window) in windows.into_iter().enumerate() {
        m.enter(layer);
        let rope = if window.is_some() { &local } else { &global };
        let h = m.norm("attn_norm", x, Norm::Layer("input_layernorm"));
        let q = m.linear("q_proj", h, "self_attn.q_proj", m.q_dim(), bias);
        let k = m.linear("k_proj", h, "self_attn.k_proj", m.kv_dim(), bias);
        let v = m.linear("v_proj", h, "self_attn.v_proj", m.kv_dim(), bias);
        let q = m.norm("q_norm", q, Norm::Heads("self_attn.q_norm", heads));
        let k = m.norm("k_norm", k, Norm::Heads("self_attn.k_norm", kv_heads));
        let q = m.rope_by("q_rope", q, heads, rope);
        let k = m.rope_by("k_rope", k, kv_heads, rope);
        let o = m.attention(q, k, v, window);
        let o = m.linear("attn_out", o, "self_attn.o_proj", hidden, bias);
        let o = m.norm("attn_post_norm", o, Norm::Layer("post_attention_layernorm"));
        x = m.add("attn_resid", x, o);
        let h = m.norm("mlp_norm", x, Norm::Layer("pre_feedforward_layernorm"));
        let f = m.gated_mlp(h, false);
        let f = m.norm("mlp_post_norm", f, Norm::Layer("post_feedforward_layernorm"));
        x = m.add("out", x, f);
    }
    m.logits(x)
}

/// A bound, if there is one.
fn cap(s: &Settings, key: &str) -> Result<Option<f64>, Error> {
    s.raw(key).map(|_| s.positive_or(key, 1.0, "")).transpose()
}

/// The rotations of layers that see everything, which alone are scaled, and of those with a window.
fn ropes(s: &Settings, shape: Shape) -> Result<(RopeConfig, RopeConfig), Error> {
    let by_type = s.raw("rope_parameters");
    if by_type.is_some_and(|p| p.get("full_attention").or(p.get("sliding_attention")).is_none()) {
        return Err(s.wrong("rope_parameters", "has neither full_attention nor sliding_attention"));
    }
    let of = |kind: &str| by_type.and_then(|p| p.get(kind)).filter(|v| !v.is_null());
    let theta = |key: &str, kind: &str, default: f64| match of(kind).and_then(|p| p.get("rope_theta")) {
        Some(Value::Number(n)) => {
            s.note(key, n, format!("rope_parameters: {kind}"));
            Ok(n.as_f64().unwrap_or(default))
        }
        _ => s.positive_or(key, default, "Gemma 3"),
    };
    let global = theta("rope_theta", "full_attention", 1e6)?;
    let local = theta("rope_local_base_freq", "sliding_attention", 1e4)?;
    let scaling = match s.raw("rope_scaling") {
        Some(scaling) => ("rope_scaling", Some(scaling)),
        None => ("rope_parameters", of("full_attention")),
    };
    let read = |section, theta| rope::read_section(s, section, theta, shape.head_dim, shape.max_positions);
    Ok((read(scaling, global)?, read(("rope_parameters", of("sliding_attention")), local)?))
}

/// Each layer's window: by `layer_types`, else every `sliding_window_pattern`-th layer sees all.
fn windows(s: &Settings, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let window = s.extent_or("sliding_window", 4096, "Gemma 3")?;
    if s.raw("layer_types").is_some() {
        return super::decoder::layer_types(s, layers, window);
    }
    let pattern = s.extent_or("sliding_window_pattern", 6, "Gemma 3")?;
    Ok((0..layers).map(|layer| (!(layer + 1).is_multiple_of(pattern)).then_some(window)).collect())
}
