//! Metadata in the keys of `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::header::Header;
use crate::{Config, GgufFault};

/// Integers that only change their name.
const INTEGERS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("context_length", "max_position_embeddings"),
    ("vocab_size", "vocab_size"),
    ("attention.sliding_window", "sliding_window"),
    ("expert_count", "num_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
];

/// Floats that only change their name.
const FLOATS: &[(&str, &str)] = &[
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// What `expert_gating_func` numbers.
const SCORINGS: &[(u64, &str)] = &[(1, "softmax"), (2, "sigmoid")];

/// Architectures spelled otherwise by Hugging Face.
const MODEL_TYPES: &[(&str, &str)] = &[("qwen3moe", "qwen3_moe"), ("gemma3", "gemma3_text")];

/// What llama.cpp takes where a file says nothing.
const DEFAULT_ROPE_THETA: f64 = 10000.0;

struct Translation<'a> {
    file: &'a [u8],
    header: &'a Header,
    architecture: &'a str,
    config: Config,
}

/// The configuration of a file whose bytes are `file`.
pub(super) fn translate(
    path: &Path,
    file: &[u8],
    header: &Header,
    architecture: &str,
) -> Result<Config, GgufFault> {
    let mut this = Translation { file, header, architecture, config: Config::new(path) };
    for (key, name) in INTEGERS {
        this.integer(key, name)?;
    }
    for (key, name) in FLOATS {
        if let Some(x) = header.metadata.float(&this.key(key))? {
            this.set(name, x, key);
        }
    }
    this.model_type();
    this.heads()?;
    this.vocabulary();
    this.rope()?;
    this.presence()?;
    Ok(this.config)
}

impl Translation<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// Sets a key that comes from the architecture's `key`.
    fn set(&mut self, name: &str, value: impl Into<Value>, key: &str) {
        let origin = self.key(key);
        self.config.set(name, value, origin);
    }

    fn integer(&mut self, key: &str, name: &str) -> Result<(), GgufFault> {
        if let Some(n) = self.header.metadata.uniform(self.file, &self.key(key))? {
            self.set(name, n, key);
        }
        Ok(())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.config.get(name).and_then(Value::as_u64)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.iter().any(|tensor| tensor.name == name)
    }

    fn model_type(&mut self) {
        let spelled = MODEL_TYPES.iter().find(|row| row.0 == self.architecture);
        let mut name = spelled.map_or(self.architecture, |row| row.1);
        // Mixtral is stored as `llama` with experts.
        if name == "llama" && self.number("num_experts").is_some_and(|n| n > 0) {
            name = "mixtral";
        }
        let name = name.to_owned();
        self.config.set("model_type", name, "general.architecture");
    }

    fn heads(&mut self) -> Result<(), GgufFault> {
        let heads = self.number("num_attention_heads");
        if let (Some(heads), None) = (heads, self.number("num_key_value_heads")) {
            // Families of Hugging Face have other defaults, so the absent key is filled in.
            let origin = format!("{}, as {} is absent", self.key("attention.head_count"), "head_count_kv");
            self.config.set("num_key_value_heads", heads, origin);
        }
        let value_length = self.header.metadata.unsigned(&self.key("attention.value_length"))?;
        if let (Some(keys), Some(values)) = (self.number("head_dim"), value_length)
            && keys != values
        {
            return Err(GgufFault::HeadLengths { keys, values });
        }
        if let (Some(hidden), Some(heads), None) =
            (self.number("hidden_size"), heads, self.number("head_dim"))
        {
            if heads == 0 || !hidden.is_multiple_of(heads) {
                return Err(GgufFault::UnevenHeads { hidden, heads });
            }
            let origin = format!("{} / {}", self.key("embedding_length"), self.key("attention.head_count"));
            self.config.set("head_dim", hidden / heads, origin);
        }
        Ok(())
    }

    fn vocabulary(&mut self) {
        if self.number("vocab_size").is_none()
            && let Some(embedding) = self.header.tensors.iter().find(|t| t.name == "token_embd.weight")
            && let Some(&rows) = embedding.shape.first()
        {
            self.config.set("vocab_size", rows, "rows of token_embd.weight");
        }
        for (key, name) in
            [("tokenizer.ggml.bos_token_id", "bos_token_id"), ("tokenizer.ggml.eos_token_id", "eos_token_id")]
        {
            // A token id of the wrong type is the tokenizer's fault to report.
            if let Ok(Some(id)) = self.header.metadata.unsigned(key) {
                self.config.set(name, id, key);
            }
        }
    }

    fn rope(&mut self) -> Result<(), GgufFault> {
        if self.config.get("rope_theta").is_none() {
            let origin = format!("llama.cpp's default, as {} is absent", self.key("rope.freq_base"));
            self.config.set("rope_theta", DEFAULT_ROPE_THETA, origin);
        }
        let rotated = self.header.metadata.unsigned(&self.key("rope.dimension_count"))?;
        if let (Some(rotated), Some(head_dim)) = (rotated, self.number("head_dim"))
            && rotated != head_dim
            && head_dim > 0
        {
            self.set("partial_rotary_factor", rotated as f64 / head_dim as f64, "rope.dimension_count");
        }
        match self.rope_scaling()? {
            Some(scaling) => self.set("rope_scaling", scaling, "rope.scaling"),
            None => return Ok(()),
        }
        Ok(())
    }

    fn float(&self, key: &str) -> Result<Option<f64>, GgufFault> {
        self.header.metadata.float(&self.key(key))
    }

    fn rope_scaling(&self) -> Result<Option<Value>, GgufFault> {
        let kind = self.header.metadata.string(&self.key("rope.scaling.type"))?;
        // Files of 2023 have the linear factor alone.
        let factor = self.float("rope.scaling.factor")?.or(self.float("rope.scale_linear")?);
        let kind = match (kind, factor) {
            (Some("none"), _) | (None, None) => return Ok(None),
            (Some(kind), _) => kind,
            (None, Some(factor)) if factor == 0.0 || factor == 1.0 => return Ok(None),
            (None, Some(_)) => "linear",
        };
        let attention = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0)
            * self.float("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
        match kind {
            "linear" => {
                if attention != 1.0 {
                    return Err(self.unsupported("rope.scaling.attn_factor", attention));
                }
                let factor = factor.ok_or_else(|| self.missing("rope.scaling.factor"))?;
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            "yarn" => self.yarn(factor, attention).map(Some),
            // The family refuses what it does not know, by this name.
            other => Ok(Some(json!({"rope_type": other, "factor": factor}))),
        }
    }

    /// YaRN as llama.cpp computes it: its amplitude is `1 + 0.1·ln(factor)` times the file's factors.
    fn yarn(&self, factor: Option<f64>, attention: f64) -> Result<Value, GgufFault> {
        let factor = factor.ok_or_else(|| self.missing("rope.scaling.factor"))?;
        for (key, usual) in [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)]
        {
            if let Some(value) = self.float(key)?.filter(|value| *value != usual) {
                return Err(self.unsupported(key, value));
            }
        }
        let original = self.header.metadata.unsigned(&self.key("rope.scaling.original_context_length"))?;
        let amplitude = if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
        Ok(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original.or(self.number("max_position_embeddings")),
            "attention_factor": attention * amplitude,
            "beta_fast": self.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            "beta_slow": self.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        }))
    }

    fn missing(&self, key: &str) -> GgufFault {
        GgufFault::MissingKey { key: self.key(key) }
    }

    fn unsupported(&self, key: &str, value: f64) -> GgufFault {
        GgufFault::UnsupportedValue { key: self.key(key), value: value.to_string() }
    }

    /// What the file says by having a tensor, or by not having it.
    fn presence(&mut self) -> Result<(), GgufFault> {
        let output = self.has_tensor("output.weight");
        let origin = if output { "output.weight is present" } else { "output.weight is absent" };
        self.config.set("tie_word_embeddings", !output, origin);
        for (tensor, key) in [
            ("blk.0.attn_q.bias", "attention_bias"),
            ("blk.0.ffn_gate.bias", "mlp_bias"),
            ("rope_freqs.weight", "rope_freqs"),
        ] {
            if self.has_tensor(tensor) {
                self.config.set(key, true, format!("{tensor} is present"));
            }
        }
        self.routing()?;
        if self.architecture == "gemma3" {
            self.gemma();
        }
        if self.architecture == "qwen3moe" {
            self.config.set("norm_topk_prob", true, "llama.cpp always normalises for qwen3moe");
        }
        Ok(())
    }

    /// What llama.cpp knows of Gemma 3 without reading it: scores are scaled by the head size, but in the
    /// 27B model, which has 62 layers, by hidden size over heads.
    fn gemma(&mut self) {
        let large = self.number("num_hidden_layers") == Some(62);
        let (scalar, origin) = match (self.number("hidden_size"), self.number("num_attention_heads")) {
            (Some(hidden), Some(heads)) if large && heads > 0 => {
                (Some(hidden / heads), "llama.cpp's, for the 27B model")
            }
            _ => (self.number("head_dim"), "llama.cpp's: the head size"),
        };
        if let Some(scalar) = scalar {
            self.config.set("query_pre_attn_scalar", scalar, origin);
        }
    }

    /// How experts are scored and weighted; 0 says nothing.
    fn routing(&mut self) -> Result<(), GgufFault> {
        if let Some(number) =
            self.header.metadata.unsigned(&self.key("expert_gating_func"))?.filter(|n| *n > 0)
        {
            let known = SCORINGS.iter().find(|row| row.0 == number);
            let name = known.map_or_else(|| number.to_string(), |row| row.1.to_owned());
            self.set("scoring_func", name, "expert_gating_func");
        }
        if let Some(scale) = self.float("expert_weights_scale")?.filter(|scale| *scale != 0.0) {
            self.set("routed_scaling_factor", scale, "expert_weights_scale");
        }
        Ok(())
    }
}
