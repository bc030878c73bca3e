//! The building blocks that decoder-only families share.

use firstdiff_checkpoint::Checkpoint;

use crate::ops::{
    Activation, Add, AttnHeads, AttnProbs, AttnScores, Cache, Embed, Expert, Experts, GatedAct, Linear,
    NormForm, RmsNorm, Rope, RouterScores, RouterWeights, Scoring, Slice, SoftCap, TopK,
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

/// What most families have in common, and some have otherwise.
#[derive(Clone, Copy)]
pub(super) struct Habits {
    pub norm: NormForm,
    pub eps: f64,
    pub tied: bool,
    /// The configuration's key for the activation, and what it is where absent.
    pub activation: (&'static str, &'static str),
    /// Factor on embeddings; 1: none.
    pub embed_scale: f64,
    /// Factor on attention's scores; none: `head_dim^-1/2`.
    pub score_scale: Option<f64>,
    /// Bound on the logits.
    pub logit_cap: Option<f64>,
    /// Inner size of the MLP, where it is not read from the configuration.
    pub intermediate: Option<usize>,
    /// Layers where the configuration does not say.
    pub layers: Option<usize>,
    /// The rotary base where the configuration does not say.
    pub theta: f64,
}

impl Default for Habits {
    fn default() -> Habits {
        Habits {
            norm: NormForm::Stored,
            eps: 1e-6,
            tied: false,
            activation: ("hidden_act", "silu"),
            embed_scale: 1.0,
            score_scale: None,
            logit_cap: None,
            intermediate: None,
            layers: None,
            theta: 10_000.0,
        }
    }
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

/// Refuses routers that choose among groups of experts first: no family here has them.
pub(super) fn refuse_groups(s: &Settings, family: &str) -> Result<(), Error> {
    for key in ["n_group", "topk_group"] {
        let one = |value: &serde_json::Value| matches!(value.as_u64(), Some(0 | 1));
        if let Some(groups) = s.raw(key).filter(|value| !value.is_null() && !one(value)) {
            let reason = format!("is {groups}; {family} chooses among all experts, in one group");
            return Err(s.wrong(key, reason));
        }
    }
    Ok(())
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
    habits: Habits,
}

impl<'c> Decoder<'c> {
    pub fn new(s: &Settings, checkpoint: &'c Checkpoint, shape: Shape) -> Result<Decoder<'c>, Error> {
        Decoder::with(s, checkpoint, shape, Habits::default())
    }

    /// A family that has some things otherwise.
    pub fn with(
        s: &Settings,
        checkpoint: &'c Checkpoint,
        Shape { hidden, heads, kv_heads, head_dim, max_positions }: Shape,
        habits: Habits,
    ) -> Result<Decoder<'c>, Error> {
        let layers = match habits.layers {
            Some(usual) => s.extent_or("num_hidden_layers", usual, "as the family has it")?,
            None => s.extent("num_hidden_layers")?,
        };
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
        let (key, usual) = habits.activation;
        let name = s.string_or(key, usual, "as the family has it")?;
        let activation = Activation::from_name(&name)
            .ok_or_else(|| s.wrong(key, format!("is '{name}'; supported are silu and gelu_pytorch_tanh")))?;
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
            intermediate: match habits.intermediate {
                Some(size) => size,
                None => s.extent("intermediate_size")?,
            },
            heads,
            kv_heads,
            head_dim,
            vocab,
            eps: s.positive_or("rms_norm_eps", habits.eps, "as the family has it")?,
            activation,
            rope: rope::read(s, habits.theta, head_dim, max_positions, divisors.as_deref())?,
            head: output_weight(s, checkpoint, habits.tied)?,
            habits,
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
        let scale = self.habits.embed_scale;
        self.builder.push("embed", Embed { weight, vocab: self.vocab, dim: self.hidden, scale }, &[])
    }

    pub fn norm(&mut self, tap: &str, x: Value, norm: Norm) -> Value {
        let (module, dim, heads) = match norm {
            Norm::Layer(module) => (module, self.hidden, None),
            Norm::Heads(module, heads) => (module, self.head_dim, Some(heads)),
        };
        let weight = format!("{}{module}.weight", self.prefix);
        self.builder.push(tap, RmsNorm { weight, eps: self.eps, dim, heads, form: self.habits.norm }, &[x])
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
        let rope = self.rope.clone();
        self.rope_by(tap, x, heads, &rope)
    }

    /// A rotation with frequencies of its own.
    pub fn rope_by(&mut self, tap: &str, x: Value, heads: usize, rope: &RopeConfig) -> Value {
        let RopeConfig { frequencies, amplitude } = rope.clone();
        self.builder.push(tap, Rope { heads, dim: self.head_dim, frequencies, amplitude }, &[x])
    }

    /// Cached causal attention; `window` limits how far back a row sees.
    pub fn attention(&mut self, q: Value, k: Value, v: Value, window: Option<usize>) -> Value {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let scale = self.habits.score_scale.unwrap_or((dim as f64).powf(-0.5));
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

    /// A gated MLP beside the experts, that every token goes through.
    pub fn shared_mlp(&mut self, x: Value, module: &str, inner: usize) -> Value {
        let matrix = |m: &Decoder, part: &str, input: usize, output: usize| Linear {
            weight: format!("{}{module}.{part}.weight", m.prefix),
            bias: None,
            input,
            output,
        };
        let (gate, up) =
            (matrix(self, "gate_proj", self.hidden, inner), matrix(self, "up_proj", self.hidden, inner));
        let down = matrix(self, "down_proj", inner, self.hidden);
        let gate = self.builder.push("shared_gate_proj", gate, &[x]);
        let up = self.builder.push("shared_up_proj", up, &[x]);
        let act = GatedAct { activation: self.activation, limit: None };
        let act = self.builder.push("shared_act", act, &[gate, up]);
        self.builder.push("shared_out", down, &[act])
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
        match self.habits.logit_cap {
            None => self.builder.push("logits", op, &[h]),
            Some(cap) => {
                let raw = self.builder.push("logits_raw", op, &[h]);
                self.builder.push("logits", SoftCap { cap }, &[raw])
            }
        };
        Ok(self.builder.finish(self.vocab))
    }
}

/// The output matrix: its own tensor where the file has one, else the embedding, if tied. Without
/// either, transformers would make one up at random; that is an error here.
fn output_weight(s: &Settings, checkpoint: &Checkpoint, usual: bool) -> Result<String, Error> {
    let tied = s.flag_or("tie_word_embeddings", usual, "as the family has it")?;
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
    if s.raw("layer_types").is_none() {
        let first = match s.raw("max_window_layers") {
            Some(v) => {
                v.as_u64().ok_or_else(|| s.wrong("max_window_layers", "is not a whole number"))? as usize
            }
            None => 28,
        };
        s.note_read("max_window_layers", first);
        return Ok((0..layers).map(|i| (i >= first).then_some(window)).collect());
    }
    layer_types(s, layers, window)
}

/// Each layer's window as `layer_types` lists it.
pub(super) fn layer_types(s: &Settings, layers: usize, window: usize) -> Result<Vec<Option<usize>>, Error> {
    let types = s.raw("layer_types").and_then(|t| t.as_array()).filter(|t| t.len() == layers);
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
