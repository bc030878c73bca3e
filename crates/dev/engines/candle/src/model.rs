//! Llama and Qwen3 from candle's building blocks, with a tap at each operation.

use candle_core::{DType, Device, Module as _, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::{
    Embedding, Linear, RmsNorm, VarBuilder, embedding, linear_no_bias, ops, rms_norm, rotary_emb,
};

use crate::config::Config;
use crate::record::Recorder;

/// A model with its cache.
pub struct Model {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    angles: Angles,
}

/// Cosines and sines of every position, in the activations' format.
struct Angles {
    cos: Tensor,
    sin: Tensor,
}

struct Layer {
    at: String,
    heads: usize,
    kv_heads: usize,
    size: usize,
    attn_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Norms of queries and keys, where the family has them.
    head_norms: Option<(RmsNorm, RmsNorm)>,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    cache: Option<(Tensor, Tensor)>,
}

impl Model {
    /// Weights are brought to the format of `weights`.
    pub fn new(config: &Config, dtype: DType, weights: VarBuilder) -> Result<Model> {
        let body = weights.pp("model");
        let embed = embedding(config.vocab_size, config.hidden_size, body.pp("embed_tokens"))?;
        let head = if config.tie_word_embeddings {
            Linear::new(embed.embeddings().clone(), None)
        } else {
            linear_no_bias(config.hidden_size, config.vocab_size, weights.pp("lm_head"))?
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(config, index, body.pp("layers").pp(index)))
            .collect::<Result<_>>()?;
        let norm = rms_norm(config.hidden_size, config.rms_norm_eps, body.pp("norm"))?;
        Ok(Model { embed, layers, norm, head, angles: Angles::new(config, dtype)? })
    }

    /// Logits of the last row: candle-transformers computes no others.
    pub fn forward(&mut self, ids: &Tensor, start: usize, recorder: &mut Recorder) -> Result<Tensor> {
        let mut stream = self.embed.forward(ids)?;
        recorder.tap("embed".into(), &stream)?;
        for layer in &mut self.layers {
            stream = layer.forward(&stream, start, &self.angles, recorder)?;
        }
        let normed = self.norm.forward(&stream)?;
        recorder.tap("final_norm".into(), &normed)?;
        let logits = self.head.forward(&normed.narrow(1, normed.dim(1)? - 1, 1)?)?;
        recorder.tap("logits".into(), &logits)?;
        Ok(logits)
    }
}

impl Angles {
    /// Angles are computed in f32; only their cosines and sines are rounded.
    fn new(config: &Config, dtype: DType) -> Result<Angles> {
        let size = config.head_dim;
        let steps = (0..size).step_by(2);
        // candle's Llama raises theta in f32, its Qwen3 in f64
        let frequencies: Vec<f32> = if config.model_type == "llama" {
            steps.map(|i| 1.0 / (config.rope_theta as f32).powf(i as f32 / size as f32)).collect()
        } else {
            steps.map(|i| 1.0 / config.rope_theta.powf(i as f64 / size as f64) as f32).collect()
        };
        let frequencies = Tensor::from_vec(frequencies, (1, size / 2), &Device::Cpu)?;
        let positions = Tensor::arange(0, config.max_position_embeddings as u32, &Device::Cpu)?;
        let angles = positions.to_dtype(DType::F32)?.unsqueeze(1)?.matmul(&frequencies)?;
        Ok(Angles { cos: angles.cos()?.to_dtype(dtype)?, sin: angles.sin()?.to_dtype(dtype)? })
    }

    fn rotate(&self, value: &Tensor, start: usize) -> Result<Tensor> {
        let rows = value.dim(2)?;
        let (cos, sin) = (self.cos.narrow(0, start, rows)?, self.sin.narrow(0, start, rows)?);
        rotary_emb::rope(&value.contiguous()?, &cos, &sin)
    }
}

impl Layer {
    fn new(config: &Config, index: usize, weights: VarBuilder) -> Result<Layer> {
        let (hidden, inner, size) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (attention, mlp) = (weights.pp("self_attn"), weights.pp("mlp"));
        let norm = |channels, from: VarBuilder| rms_norm(channels, config.rms_norm_eps, from);
        let head_norms = if config.model_type == "qwen3" {
            Some((norm(size, attention.pp("q_norm"))?, norm(size, attention.pp("k_norm"))?))
        } else {
            None
        };
        Ok(Layer {
            at: format!("layers.{index}."),
            heads,
            kv_heads,
            size,
            attn_norm: norm(hidden, weights.pp("input_layernorm"))?,
            q: linear_no_bias(hidden, heads * size, attention.pp("q_proj"))?,
            k: linear_no_bias(hidden, kv_heads * size, attention.pp("k_proj"))?,
            v: linear_no_bias(hidden, kv_heads * size, attention.pp("v_proj"))?,
            o: linear_no_bias(heads * size, hidden, attention.pp("o_proj"))?,
            head_norms,
            mlp_norm: norm(hidden, weights.pp("post_attention_layernorm"))?,
            gate: linear_no_bias(hidden, inner, mlp.pp("gate_proj"))?,
            up: linear_no_bias(hidden, inner, mlp.pp("up_proj"))?,
            down: linear_no_bias(inner, hidden, mlp.pp("down_proj"))?,
            cache: None,
        })
    }

    fn forward(
        &mut self,
        stream: &Tensor,
        start: usize,
        angles: &Angles,
        recorder: &mut Recorder,
    ) -> Result<Tensor> {
        let at = self.at.clone();
        let name = |tap: &str| format!("{at}{tap}");
        let normed = self.attn_norm.forward(stream)?;
        recorder.tap(name("attn_norm"), &normed)?;
        let attended = self.attention(&normed, start, angles, recorder)?;
        let stream = (stream + attended)?;
        recorder.tap(name("attn_resid"), &stream)?;
        let normed = self.mlp_norm.forward(&stream)?;
        recorder.tap(name("mlp_norm"), &normed)?;
        let (gate, up) = (self.gate.forward(&normed)?, self.up.forward(&normed)?);
        recorder.tap(name("gate_proj"), &gate)?;
        recorder.tap(name("up_proj"), &up)?;
        let act = (ops::silu(&gate)? * up)?;
        recorder.tap(name("mlp_act"), &act)?;
        let out = self.down.forward(&act)?;
        recorder.tap(name("mlp_out"), &out)?;
        let stream = (stream + out)?;
        recorder.tap(name("out"), &stream)?;
        Ok(stream)
    }

    fn attention(
        &mut self,
        normed: &Tensor,
        start: usize,
        angles: &Angles,
        recorder: &mut Recorder,
    ) -> Result<Tensor> {
        let at = self.at.clone();
        let name = |tap: &str| format!("{at}{tap}");
        let rows = normed.dim(1)?;
        let mut projected = |tap: &str, weight: &Linear, heads: usize| {
            let value = weight.forward(normed)?;
            recorder.tap(name(tap), &value)?;
            value.reshape((1, rows, heads, self.size))?.transpose(1, 2)
        };
        let mut q = projected("q_proj", &self.q, self.heads)?;
        let mut k = projected("k_proj", &self.k, self.kv_heads)?;
        let mut v = projected("v_proj", &self.v, self.kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.head_norms {
            q = q_norm.forward(&q.contiguous()?)?;
            k = k_norm.forward(&k.contiguous()?)?;
            recorder.heads(name("q_norm"), &q)?;
            recorder.heads(name("k_norm"), &k)?;
        }
        let q = angles.rotate(&q, start)?;
        k = angles.rotate(&k, start)?;
        recorder.heads(name("q_rope"), &q)?;
        recorder.heads(name("k_rope"), &k)?;
        if let Some((keys, values)) = &self.cache {
            k = Tensor::cat(&[keys, &k], 2)?;
            v = Tensor::cat(&[values, &v], 2)?;
        }
        (k, v) = (k.contiguous()?, v.contiguous()?);
        recorder.heads(name("k_cache"), &k)?;
        recorder.heads(name("v_cache"), &v)?;
        self.cache = Some((k.clone(), v.clone()));
        // as in candle-transformers: Qwen3 takes candle's flash attention for CPUs, Llama products and a softmax
        let heads = match self.head_norms {
            Some(_) => self.flash(&q, &k, &v, start)?,
            None => self.products(&q, &k, &v, start, recorder)?,
        };
        recorder.heads(name("attn_heads"), &heads)?;
        let joined = heads.transpose(1, 2)?.reshape((1, rows, self.heads * self.size))?;
        let out = self.o.forward(&joined)?;
        recorder.tap(name("attn_out"), &out)?;
        Ok(out)
    }

    /// Scores and probabilities in f32.
    fn products(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        start: usize,
        recorder: &mut Recorder,
    ) -> Result<Tensor> {
        let (keys, rows) = (k.dim(2)?, q.dim(2)?);
        let repeated = |value: &Tensor| {
            let shape = (1, self.kv_heads, self.heads / self.kv_heads, keys, self.size);
            let value = value.to_dtype(DType::F32)?.unsqueeze(2)?.broadcast_as(shape)?;
            value.reshape((1, self.heads, keys, self.size))
        };
        let scores = (q.to_dtype(DType::F32)?.matmul(&repeated(k)?.t()?)? / (self.size as f64).sqrt())?;
        recorder.tap(format!("{}attn_scores", self.at), &scores)?;
        let hidden: Vec<u8> =
            (0..rows).flat_map(|row| (0..keys).map(move |key| u8::from(key > start + row))).collect();
        let hidden = Tensor::from_vec(hidden, (rows, keys), &Device::Cpu)?.broadcast_as(scores.shape())?;
        let never = Tensor::new(f32::NEG_INFINITY, &Device::Cpu)?.broadcast_as(scores.shape())?;
        let probabilities = ops::softmax_last_dim(&hidden.where_cond(&never, &scores)?)?;
        recorder.tap(format!("{}attn_probs", self.at), &probabilities)?;
        probabilities.matmul(&repeated(v)?)?.to_dtype(q.dtype())
    }

    /// One fused operation in f32.
    fn flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, start: usize) -> Result<Tensor> {
        let wide = |value: &Tensor| value.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32);
        let scale = 1.0 / (self.size as f32).sqrt();
        let mask = AttnMask::causal_with_offset(start);
        flash_attn::<f32>(&wide(q)?, &wide(k)?, &wide(v)?, scale, mask, None, None)?.to_dtype(q.dtype())
    }
}
