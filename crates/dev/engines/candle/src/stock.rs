//! candle-transformers' own models, which show logits only.

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen3};
use serde_json::{Value, json};

/// A model as every user of candle-transformers runs it.
pub enum Stock {
    /// `llama.rs` and its cache
    Llama(llama::Llama, llama::Cache),
    /// `qwen3.rs`
    Qwen3(qwen3::ModelForCausalLM),
}

impl Stock {
    /// From the text of config.json.
    pub fn new(family: &str, config: &str, dtype: DType, weights: VarBuilder) -> Result<Stock> {
        match family {
            "llama" => {
                let config = serde_json::from_str::<llama::LlamaConfig>(config)?.into_config(false);
                let cache = llama::Cache::new(true, dtype, &config, &Device::Cpu)?;
                Ok(Stock::Llama(llama::Llama::load(weights, &config)?, cache))
            }
            "qwen3" => {
                let mut config: Value = serde_json::from_str(config)?;
                // keys that candle requires and transformers leaves out
                for (key, value) in [("max_window_layers", json!(0)), ("use_sliding_window", json!(false))] {
                    config[key] = value;
                }
                Ok(Stock::Qwen3(qwen3::ModelForCausalLM::new(&serde_json::from_value(config)?, weights)?))
            }
            other => bail!("{other}: llama and qwen3 are recorded"),
        }
    }

    /// Logits of the last row.
    pub fn forward(&mut self, ids: &Tensor, start: usize) -> Result<Vec<f32>> {
        let logits = match self {
            Stock::Llama(model, cache) => model.forward(ids, start, cache)?,
            Stock::Qwen3(model) => model.forward(ids, start)?,
        };
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}
