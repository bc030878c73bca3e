//! MiniMind, both generations, by its own configuration: the second is a small Llama, the third a small
//! Qwen3; each with a mixture of experts or without. Exports are of the families they are exported to.

use firstdiff_checkpoint::Checkpoint;
use serde_json::json;

use super::Family;
use super::decoder::{Decoder, Habits, Mixture, Norm, Shape, refuse_groups};
use crate::ops::NormForm;
use crate::rope::{self, RopeConfig};
use crate::{Error, Program, Settings};

pub(super) const FAMILY: Family =
    Family { name: "minimind", members: "MiniMind-2, MiniMind-3, dense and MoE", build };

/// What tells the generations apart: the third normalises queries.
const THIRD: &str = "model.layers.0.self_attn.q_norm.weight";

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let third = checkpoint.has(THIRD);
    s.note(
        "generation",
        if third { 3 } else { 2 },
        format!("{THIRD} is {}", if third { "there" } else { "absent" }),
    );
    let hidden = s.extent_or("hidden_size", if third { 768 } else { 512 }, "MiniMind")?;
    let heads = s.extent_or("num_attention_heads", 8, "MiniMind")?;
    let kv_heads = s.extent_or("num_key_value_heads", if third { 4 } else { 2 }, "MiniMind")?;
    let head_dim = match third {
        true => s.extent_or("head_dim", hidden / heads, "hidden_size / num_attention_heads")?,
        false => hidden / heads,
    };
    let max_positions = s.extent_or("max_position_embeddings", 32768, "MiniMind")?;
    let inner = s.extent_or("intermediate_size", inner_size(hidden, third), "MiniMind, by hidden_size")?;
    let shape = Shape { hidden, heads, kv_heads, head_dim, max_positions };
    let habits = Habits {
        norm: if third { NormForm::Once } else { NormForm::Stored },
        eps: if third { 1e-6 } else { 1e-5 },
        tied: true,
        intermediate: Some(inner),
        layers: Some(8),
        theta: 1e6,
        ..Habits::default()
    };
    let rope = rotation(s, shape, habits.theta)?;
    let mut m = Decoder::with(s, checkpoint, shape, habits)?;
    let mixture = match s.flag_or("use_moe", false, "MiniMind")? {
        true => Some(mixture(s, inner, third)?),
        false => None,
    };

    let mut x = m.embed();
    for layer in 0..m.layers {
        m.enter(layer);
        let h = m.norm("attn_norm", x, Norm::Layer("input_layernorm"));
        let mut q = m.linear("q_proj", h, "self_attn.q_proj", m.q_dim(), false);
        let mut k = m.linear("k_proj", h, "self_attn.k_proj", m.kv_dim(), false);
        let v = m.linear("v_proj", h, "self_attn.v_proj", m.kv_dim(), false);
        if third {
            q = m.norm("q_norm", q, Norm::Heads("self_attn.q_norm", heads));
            k = m.norm("k_norm", k, Norm::Heads("self_attn.k_norm", kv_heads));
        }
        let q = m.rope_by("q_rope", q, heads, &rope);
        let k = m.rope_by("k_rope", k, kv_heads, &rope);
        let o = m.attention(q, k, v, None);
        let o = m.linear("attn_out", o, "self_attn.o_proj", hidden, false);
        x = m.add("attn_resid", x, o);
        let h = m.norm("mlp_norm", x, Norm::Layer("post_attention_layernorm"));
        let f = match &mixture {
            None => m.gated_mlp(h, false),
            Some((mixture, shared)) => {
                let f = m.mixture(h, mixture);
                match shared {
                    false => f,
                    true => {
                        let shared = m.shared_mlp(h, "mlp.shared_experts.0", inner);
                        m.add("mlp_out", f, shared)
                    }
                }
            }
        };
        x = m.add("out", x, f);
    }
    m.logits(x)
}

/// Plain, or YaRN where `inference_rope_scaling` asks for it and the context is longer than trained.
fn rotation(s: &Settings, shape: Shape, theta: f64) -> Result<RopeConfig, Error> {
    let theta = s.positive_or("rope_theta", theta, "MiniMind")?;
    let usual = json!({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048,
                       "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0});
    let scaling = match s.flag_or("inference_rope_scaling", false, "MiniMind")? {
        false => None,
        true => Some(s.raw("rope_scaling").unwrap_or(&usual)),
    };
    let trained = |v: &serde_json::Value| v["original_max_position_embeddings"].as_f64().unwrap_or(2048.0);
    let scaling = scaling.filter(|v| shape.max_positions as f64 > trained(v));
    rope::read_section(s, ("rope_scaling", scaling), theta, shape.head_dim, shape.max_positions)
}

/// The MLP's inner size where it is not given, a multiple of 64: pi times the hidden size, or 8/3.
fn inner_size(hidden: usize, third: bool) -> usize {
    match third {
        true => (hidden as f64 * std::f64::consts::PI / 64.0).ceil() as usize * 64,
        false => (hidden * 8 / 3).div_ceil(64) * 64,
    }
}

/// The router, and whether there is an expert for everyone beside it.
fn mixture(s: &Settings, inner: usize, third: bool) -> Result<(Mixture, bool), Error> {
    let (count, usual) = if third { ("num_experts", 1) } else { ("n_routed_experts", 2) };
    let experts = s.extent_or(count, 4, "MiniMind")?;
    let chosen = s.extent_or("num_experts_per_tok", usual, "MiniMind")?;
    if chosen > experts {
        return Err(s.wrong("num_experts_per_tok", format!("is {chosen}, but there are {experts} experts")));
    }
    refuse_groups(s, "MiniMind")?;
    let scoring = s.string_or("scoring_func", "softmax", "MiniMind")?;
    if scoring != "softmax" {
        return Err(s.wrong("scoring_func", format!("is '{scoring}'; this family has softmax")));
    }
    let shared = match s.raw("n_shared_experts").and_then(serde_json::Value::as_u64) {
        _ if third => false,
        Some(0) => false,
        None | Some(1) => true,
        Some(n) => {
            return Err(s.wrong("n_shared_experts", format!("is {n}; 0 and 1 are supported")));
        }
    };
    if !third {
        s.note("n_shared_experts", u8::from(shared), "MiniMind-2");
    }
    let inner = if third { s.extent_or("moe_intermediate_size", inner, "intermediate_size")? } else { inner };
    // One expert's weight is made 1 by the third generation, and left as it is by the second.
    let normalise = s.flag_or("norm_topk_prob", true, "MiniMind")? && (third || chosen > 1);
    Ok((Mixture { experts, chosen, inner, normalise: normalise.then_some(1e-20), scale: 1.0 }, shared))
}
