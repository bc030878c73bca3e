//! Tensor names: GGUF's to Hugging Face's.

/// Names outside the layers, for every architecture.
const GLOBAL: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Names within `blk.N.`, for every architecture.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
];

/// What an architecture has under another name: these are looked up first.
const EXCEPTIONS: &[(&str, &[(&str, &str)])] = &[(
    "gemma3",
    &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
)];

/// Architectures whose names and value transforms are known. The tensors of any other keep their names.
const ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3", "qwen3moe", "gemma3"];

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|row| row.0 == name).map(|row| row.1)
}

/// Hugging Face's name for a tensor of `architecture`; its own name when there is none.
pub(super) fn canonical(architecture: &str, name: &str) -> String {
    translate(architecture, name).unwrap_or_else(|| name.to_owned())
}

fn translate(architecture: &str, name: &str) -> Option<String> {
    if !ARCHITECTURES.contains(&architecture) {
        return None;
    }
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let Some(in_layer) = stem.strip_prefix("blk.") else {
        return find(GLOBAL, stem).map(|stem| format!("{stem}.{kind}"));
    };
    let (layer, stem) = in_layer.split_once('.')?;
    // A number is written one way only, or two names could become one.
    if layer.parse::<u32>().ok()?.to_string() != layer {
        return None;
    }
    let exceptions = EXCEPTIONS.iter().find(|row| row.0 == architecture).map_or(&[][..], |row| row.1);
    let stem = find(exceptions, stem).or_else(|| find(LAYER, stem))?;
    Some(format!("model.layers.{layer}.{stem}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_become_those_of_hugging_face() {
        for (name, expected) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.17.ffn_norm.weight", "model.layers.17.post_attention_layernorm.weight"),
        ] {
            assert_eq!(canonical("qwen2", name), expected);
        }
        assert_eq!(
            canonical("gemma3", "blk.1.ffn_norm.weight"),
            "model.layers.1.pre_feedforward_layernorm.weight"
        );
    }

    #[test]
    fn unknown_names_stay_as_they_are() {
        for name in
            ["rope_freqs.weight", "blk.01.attn_q.weight", "blk.0.attn_q", "blk.0.attn_sinks.weight", ""]
        {
            assert_eq!(canonical("llama", name), name);
        }
        assert_eq!(canonical("mamba", "token_embd.weight"), "token_embd.weight");
    }
}
