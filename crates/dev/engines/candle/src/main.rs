//! Runs a tiny Llama or Qwen3 on candle and records what it computes.
//!
//! `firstdiff-dev-candle MODEL TRACE DTYPE TOKENS COUNT`: the checkpoint's folder, a new folder for the trace, `f32`,
//! `bf16` or `f16`, the prompt's token ids with commas between, and how many tokens to decode.
//!
//! candle's own models keep their layers private, so the model that is recorded is written here from candle's building
//! blocks. candle-transformers' model runs beside it, and both must give the same logits bit for bit: what is recorded
//! is what candle computes.

mod config;
mod model;
mod record;
mod stock;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::config::Config;
use crate::model::Model;
use crate::record::Recorder;
use crate::stock::Stock;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, trace, dtype, tokens, count] = args.as_slice() else {
        bail!("usage: firstdiff-dev-candle MODEL TRACE DTYPE TOKENS COUNT");
    };
    let dtype = match dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        other => bail!("{other}: the dtype is f32, bf16 or f16"),
    };
    let prompt = tokens.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>();
    let prompt = prompt.with_context(|| format!("{tokens}: token ids with commas between"))?;
    let count = count.parse().with_context(|| format!("{count}: how many tokens to decode"))?;
    run(Path::new(folder), Path::new(trace), dtype, prompt, count)
}

fn run(folder: &Path, trace: &Path, dtype: DType, prompt: Vec<u32>, count: usize) -> Result<()> {
    let device = Device::Cpu;
    let text = std::fs::read_to_string(folder.join("config.json"))?;
    let config: Config = serde_json::from_str(&text).context("config.json")?;
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &device)?;
    let weights = VarBuilder::from_tensors(weights, dtype, &device);
    let mut model = Model::new(&config, dtype, weights.clone())?;
    let mut stock = Stock::new(&config.model_type, &text, dtype, weights)?;
    let mut recorder = Recorder::create(trace, &config.model_type)?;
    let (mut ids, mut start) = (prompt, 0);
    for step in 0..=count {
        let input = Tensor::new(ids.as_slice(), &device)?.unsqueeze(0)?;
        let logits = model.forward(&input, start, &mut recorder)?;
        let last = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if last != stock.forward(&input, start)? {
            bail!("step {step}: the logits are not those of candle-transformers");
        }
        let best = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let chosen = best.map_or(0, |(token, _)| token as u32);
        recorder.step(&ids, start, chosen)?;
        start += ids.len();
        ids = vec![chosen];
    }
    recorder.finish()
}
