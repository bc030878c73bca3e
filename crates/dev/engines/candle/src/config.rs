//! What of config.json the model needs.

use serde::Deserialize;

/// A Llama or Qwen3 checkpoint.
#[derive(Deserialize)]
pub struct Config {
    /// `llama` or `qwen3`.
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f64,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
}
