//! The building blocks that decoder-only families share.

use firstdiff_checkpoint::Checkpoint;

use crate::ops::{
    Activation, Add, AttnHeads, AttnProbs, AttnScores, Cache, Embed, Expert, Experts, GatedAct, Linear,
    RmsNorm, Rope, RouterScores, RouterWeights, Scoring, Slice, TopK,
};
use crate::program::{Builder, Program, Value};
use crate::rope::{self, RopeConfig};
use crate::{Error, Settings};

/// Which channels a norm covers, and its module's name.
pub(super) enum Norm {
    /// The hidden state of a layer.
    Layer(&'static str),
    /// Each of so many heads.
    Heads(&'static str, usize),
}

/// The extents in which families' defaults differ.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
}

/// A router and its experts.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    /// Experts there are, and those chosen for each token.
    pub experts: usize,
    pub chosen: usize,
    /// Inner size of each.
    pub inner: usize,
    /// Added to the sum that the chosen weights are divided by; `None`: not divided.
    pub normalise: Option<f64>,
    /// Factor on the weights.
    pub scale: f64,
}

/// Writes a decoder's forward pass, with Hugging Face's module names.
pub(super) struct Decoder<'c> {
    pub layers: usize,
    checkpoint: &'c Checkpoint,
    builder: Builder,
    prefix: String,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    eps: f64,
    activation: Activation,
    rope: RopeConfig,
    head: String,
}

impl<'c> Decoder<'c> {
    pub fn new(
        s: &Settings,
        checkpoint: &'c Checkpoint,
        Shape { hidden, heads, kv_heads, head_dim, max_positions }: Shape,
    ) -> Result<Decoder<'c>, Error> {
        let layers = s.extent("num_hidden_layers")?;
        if layers > checkpoint.tensors().count() + checkpoint.count_absent() {
            let reason = format!("is {layers}, more than the file has tensors; it is of another model");
            return Err(s.wrong("num_hidden_layers", reason));
        }
        let rows = checkpoint.tensor("model.embed_tokens.weight").and_then(|t| t.shape.first().copied());
        let vocab = match rows {
            Some(rows) if rows > 0 => s.extent_or("vocab_size", rows, "rows of the embedding")?,
            _ => s.extent("vocab_size")?,
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(s.wrong("head_dim", format!("is {head_dim}; rotation needs an even number above 0")));
        }
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("is {kv_heads}, which does not divide num_attention_heads {heads}");
            return Err(s.wrong("num_key_value_heads", reason));
        }
        let name = s.string_or("hidden_act", "silu", "as the family has it")?;
        let activation = Activation::from_name(&name).ok_or_else(|| {
            s.wrong("hidden_act", format!("is '{name}'; supported are silu and gelu_pytorch_tanh"))
        })?;
        let divisors = match checkpoint.tensor("rope_freqs.weight") {
            Some(tensor) => Some(checkpoint.read(tensor)?),
            None => None,
        };
        Ok(Decoder {
            layers,
            checkpoint,
            builder: Builder::new(),
            prefix: String::new(),
            hidden,
            intermediate: s.extent("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            eps: s.positive_or("rms_norm_eps", 1e-6, "as the family has it")?,
            activation,
            rope: rope::read(s, head_dim, max_positions, divisors.as_deref())?,
            head: output_weight(s, checkpoint)?,
        })
    }

    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What follows belongs to this layer.
    pub fn enter(&mut self, layer: usize) {
        self.builder.enter(Some(layer));
        self.prefix = format!("model.layers.{layer}.");
    }

    pub fn embed(&mut self) -> Value {
        let weight = "model.embed_tokens.weight".to_string();
        self.builder.push("embed", Embed { weight, vocab: self.vocab, dim: self.hidden }, &[])
    }

    pub fn norm(&mut self, tap: &str, x: Value, norm: Norm) -> Value {
        let (module, dim, heads) = match norm {
            Norm::Layer(module) => (module, self.hidden, None),
            Norm::Heads(module, heads) => (module, self.head_dim, Some(heads)),
        };
        let weight = format!("{}{module}.weight", self.prefix);
        self.builder.push(tap, RmsNorm { weight, eps: self.eps, dim, heads }, &[x])
    }

    pub fn linear(&mut self, tap: &str, x: Value, module: &str, output: usize, bias: bool) -> Value {
        let input = match tap {
            "attn_out" => self.q_dim(),
            "mlp_out" => self.intermediate,
            _ => self.hidden,
        };
        let name = |part| format!("{}{module}.{part}", self.prefix);
        let op = Linear { weight: name("weight"), bias: bias.then(|| name("bias")), input, output };
        self.builder.push(tap, op, &[x])
    }

    pub fn rope(&mut self, tap: &str, x: Value, heads: usize) -> Value {
        let RopeConfig { frequencies, amplitude } = self.rope.clone();
        self.builder.push(tap, Rope { heads, dim: self.head_dim, frequencies, amplitude }, &[x])
    }

    /// Cached causal attention; `window` limits how far back a row sees.
    pub fn attention(&mut self, q: Value, k: Value, v: Value, window: Option<usize>) -> Value {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let scale = (dim as f64).powf(-0.5);
        let k = self.builder.push("k_cache", Cache { heads: kv_heads, dim }, &[k]);
        let v = self.builder.push("v_cache", Cache { heads: kv_heads, dim }, &[v]);
        let s = self.builder.push("attn_scores", AttnScores { heads, kv_heads, dim, scale }, &[q, k]);
        let p = self.builder.push("attn_probs", AttnProbs { heads, window }, &[s]);
        self.builder.push("attn_heads", AttnHeads { heads, kv_heads, dim }, &[p, v])
    }

    pub fn gated_mlp(&mut self, x: Value, bias: bool) -> Value {
        let gate = self.linear("gate_proj", x, "mlp.gate_proj", self.intermediate, bias);
        let up = self.linear("up_proj", x, "mlp.up_proj", self.intermediate, bias);
        let act =
            self.builder.push("mlp_act", GatedAct { activation: self.activation, limit: None }, &[gate, up]);
        self.linear("mlp_out", act, "mlp.down_proj", self.hidden, bias)
    }

    /// A softmax router, and the experts it chooses.
    pub fn mixture(&mut self, x: Value, m: &Mixture) -> Value {
        let logits = self.linear("router_logits", x, "mlp.gate", m.experts, false);
        let scores = RouterScores { scoring: Scoring::Softmax, wide: true };
        let scores = self.builder.push("router_scores", scores, &[logits]);
        let choice = TopK { k: m.chosen, bias: None, candidates: m.experts };
        let choice = self.builder.push("router_topk", choice, &[scores]);
        let weights = RouterWeights { normalise: m.normalise, scale: m.scale, wide: true };
        let weights = self.builder.push("router_weights", weights, &[scores, choice]);
        let experts = Experts {
            experts: (0..m.experts).map(|e| self.expert(e, m)).collect(),
            activation: self.activation,
            limit: None,
            dim: self.hidden,
            inner: m.inner,
        };
        self.builder.push("experts_out", experts, &[x, choice, weights])
    }

    /// An expert's matrices: a tensor each, stacked over the experts (GGUF), or gate and up stacked in one
    /// (what transformers holds in memory).
    fn expert(&self, number: usize, m: &Mixture) -> Expert {
        let (inner, d) = (m.inner, self.hidden);
        let stack = |part: &str| format!("{}mlp.experts.{part}", self.prefix);
        let has = |name: &str| self.checkpoint.has(name);
        if has(&stack("gate_up_proj")) {
            let fused = |first: usize| Slice {
                tensor: stack("gate_up_proj"),
                shape: vec![m.experts, 2 * inner, d],
                first: 2 * inner * number + first,
                rows: inner,
            };
            let down = Slice::of_stack(stack("down_proj"), number, [m.experts, d, inner]);
            return Expert { gate: fused(0), up: fused(inner), down };
        }
        let matrix = |part: &str, rows: usize, cols: usize| {
            let stacked = stack(&format!("{part}.weight"));
            if has(&stacked) {
                Slice::of_stack(stacked, number, [m.experts, rows, cols])
            } else {
                Slice::whole(stack(&format!("{number}.{part}.weight")), rows, cols)
            }
        };
        Expert {
            gate: matrix("gate_proj", inner, d),
            up: matrix("up_proj", inner, d),
            down: matrix("down_proj", d, inner),
        }
    }

    pub fn add(&mut self, tap: &str, a: Value, b: Value) -> Value {
        self.builder.push(tap, Add, &[a, b])
    }

    /// Final norm and output matrix.
    pub fn logits(mut self, x: Value) -> Result<Program, Error> {
        self.builder.enter(None);
        self.prefix = "model.".into();
        let h = self.norm("final_norm", x, Norm::Layer("norm"));
        let op = Linear { weight: self.head, bias: None, input: self.hidden, output: self.vocab };
        self.builder.push("logits", op, &[h]);
        Ok(self.builder.finish(self.vocab))
    }
}

/// The output matrix: its own tensor where the file has one, else the embedding, if tied. Without
/// either, transformers would make one up at random; that is an error here.
fn output_weight(s: &Settings, checkpoint: &Checkpoint) -> Result<String, Error> {
    let tied = s.flag_or("tie_word_embeddings", false, "as the family has it")?;
    let head = "lm_head.weight";
    if checkpoint.has(head) {
        return Ok(head.into());
    }
    if tied {
        return Ok("model.embed_tokens.weight".into());
    }
    Err(s.wrong(
        "tie_word_embeddings",
        "is false, but the file has no lm_head.weight; the output matrix is missing",
    ))
}

/// Each layer's sliding window, by Qwen's rules: none unless `use_sliding_window`; then
/// `layer_types` decides, else every layer from `max_window_layers` on.
pub(super) fn windows(s: &Settings, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    if !s.flag_or("use_sliding_window", false, "Qwen")? {
        return Ok(vec![None; layers]);
    }
    let window = s.extent_or("sliding_window", 4096, "Qwen")?;
    let Some(types) = s.raw("layer_types") else {
        let first = match s.raw("max_window_layers") {
            Some(v) => {
                v.as_u64().ok_or_else(|| s.wrong("max_window_layers", "is not a whole number"))? as usize
            }
            None => 28,
        };
        s.note_read("max_window_layers", first);
        return Ok((0..layers).map(|i| (i >= first).then_some(window)).collect());
    };
    let types = types.as_array().filter(|t| t.len() == layers);
    let types = types.ok_or_else(|| s.wrong("layer_types", format!("must list {layers} layers")))?;
    types
        .iter()
        .map(|t| match t.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(Some(window)),
            _ => Err(
                s.wrong("layer_types", format!("has {t}; full_attention or sliding_attention is expected"))
            ),
        })
        .collect()
}
