//! DeepSeek-V4: several residual streams, one key that is also the value, compressed entries of
//! earlier tokens, experts chosen by score or by token.

mod config;
mod names;

use firstdiff_checkpoint::Checkpoint;

use super::Family;
use crate::ops::{
    Activation, Add, AttnHeads, AttnScores, Cache, Embed, EntryCache, EntryPlace, Expert, Experts,
    FakeFormat, FakeQuant, GateLimit, GatedAct, GroupedLinear, HcCollapse, HcExpand, HcPart, HcWeights,
    IndexScores, IndexTopK, JoinKeys, Limit, Linear, Pool, RouterScores, RouterWeights, SinkProbs, Slice,
    Streams, TableChoice, TailRope, TopK, VisibleKeys, WideNorm,
};
use crate::program::{Axis, Builder, Program, Value};
use crate::rope::RopeConfig;
use crate::{Error, Settings};
use config::{Attention, V4Config};
use names::Names;

pub(super) const FAMILY: Family =
    Family { name: "deepseek_v4", members: "DeepSeek-V4-Flash, DeepSeek-V4-Pro", build };

/// What transformers adds to a sum of scores before it divides by it.
const TINY: f64 = 1e-20;

fn build(s: &Settings, checkpoint: &Checkpoint) -> Result<Program, Error> {
    let c = V4Config::read(s, checkpoint)?;
    let simulated = s.simulation().is_some();
    if simulated && !c.index_dim.is_power_of_two() {
        let reason = format!("is {}; the simulated transform needs a power of two", c.index_dim);
        return Err(s.wrong("index_head_dim", reason));
    }
    let mut m = V4 { c: &c, names: Names { checkpoint }, b: Builder::new(), layer: 0, simulated };

    let e = m.embed();
    let mut x = m.b.push("hc_streams", Streams { count: c.streams, dim: c.hidden }, &[e]);
    for (number, layer) in c.layers.iter().enumerate() {
        m.enter(number);
        let (y, post, mix) = m.hyper_connection("hc_attn", x);
        let h = m.norm("attn_norm", y, "attn_norm.weight", c.hidden);
        let a = m.attention(h, layer.attention);
        x = m.expand("attn_resid", [a, post, mix, x]);
        let (y, post, mix) = m.hyper_connection("hc_ffn", x);
        let h = m.norm("mlp_norm", y, "ffn_norm.weight", c.hidden);
        let f = m.experts(h, layer.hashed);
        x = m.expand("out", [f, post, mix, x]);
    }
    m.b.enter(None);
    let pre = m.head_weights(x);
    let h = m.b.push("hc_head", HcCollapse { dim: c.hidden }, &[pre, x]);
    let norm = WideNorm {
        weight: Some(m.names.whole("norm.weight")),
        eps: c.eps,
        dim: c.hidden,
        heads: None,
        rows: Axis::Tokens,
    };
    let h = m.b.push("final_norm", norm, &[h]);
    let head = m.names.whole("head.weight");
    m.b.push("logits", Linear { weight: head, bias: None, input: c.hidden, output: c.vocab }, &[h]);
    Ok(m.b.finish(c.vocab))
}

/// Writes the forward pass.
struct V4<'c> {
    c: &'c V4Config,
    names: Names<'c>,
    b: Builder,
    layer: usize,
    simulated: bool,
}

/// One of a layer's two compressors: the names of its taps and tensors, and its sizes.
struct Compressor {
    taps: [&'static str; 8],
    tensors: &'static str,
    dim: usize,
    ratio: usize,
    overlap: bool,
    /// What its entries go through in a simulation.
    quantised: (&'static str, fn(&V4Config) -> FakeFormat),
}

impl V4<'_> {
    fn enter(&mut self, layer: usize) {
        self.layer = layer;
        self.b.enter(Some(layer));
    }

    fn tensor(&self, released: &str) -> String {
        self.names.layer(self.layer, released)
    }

    fn embed(&mut self) -> Value {
        let weight = self.names.whole("embed.weight");
        self.b.push("embed", Embed { weight, vocab: self.c.vocab, dim: self.c.hidden, scale: 1.0 }, &[])
    }

    fn norm_of(&mut self, tap: &str, x: Value, weight: &str, dim: usize, rows: Axis) -> Value {
        let weight = Some(self.tensor(weight));
        self.b.push(tap, WideNorm { weight, eps: self.c.eps, dim, heads: None, rows }, &[x])
    }

    fn norm(&mut self, tap: &str, x: Value, weight: &str, dim: usize) -> Value {
        self.norm_of(tap, x, weight, dim, Axis::Tokens)
    }

    fn linear(&mut self, tap: &str, x: Value, weight: &str, input: usize, output: usize) -> Value {
        let weight = self.tensor(weight);
        self.b.push(tap, Linear { weight, bias: None, input, output }, &[x])
    }

    fn rope(
        &mut self,
        tap: &str,
        x: Value,
        rope: &RopeConfig,
        like: (Axis, usize, usize),
        inverse: bool,
    ) -> Value {
        let (rows, heads, dim) = like;
        let RopeConfig { frequencies, amplitude } = rope.clone();
        let op = TailRope {
            rows,
            heads,
            dim,
            rotated: self.c.rotated,
            frequencies,
            amplitude,
            inverse,
            leading: false,
            halves: false,
            entry: EntryPlace::First,
        };
        self.b.push(tap, op, &[x])
    }

    /// The projection that a hyper-connection's weights are made of, from all streams together.
    fn projection(&mut self, tap: &str, x: Value, weight: String, output: usize) -> Value {
        let input = self.c.streams * self.c.hidden;
        let norm = WideNorm { weight: None, eps: self.c.eps, dim: input, heads: None, rows: Axis::Tokens };
        let z = self.b.push(&format!("{tap}_norm"), norm, &[x]);
        self.b.widen();
        let q = self.b.push(&format!("{tap}_proj"), Linear { weight, bias: None, input, output }, &[z]);
        self.b.widen();
        q
    }

    /// The input of a branch, and the weights by which its result goes back into the streams.
    fn hyper_connection(&mut self, tap: &str, x: Value) -> (Value, Value, Value) {
        let n = self.c.streams;
        let q = self.projection(tap, x, self.tensor(&format!("{tap}_fn")), (2 + n) * n);
        let (base, scale) = (self.tensor(&format!("{tap}_base")), self.tensor(&format!("{tap}_scale")));
        let mut weights = |name: &str, part| {
            let (base, scale) = (base.clone(), scale.clone());
            let op = HcWeights { part, streams: n, width: (2 + n) * n, base, scale, eps: self.c.hc_eps };
            let w = self.b.push(&format!("{tap}_{name}"), op, &[q]);
            self.b.widen();
            w
        };
        let pre = weights("pre", HcPart::Pre);
        let post = weights("post", HcPart::Post);
        let mix = weights(
            "mix",
            HcPart::Mix { iterations: self.c.iterations, divisor_eps: self.c.hc_eps, rows_first: false },
        );
        let y = self.b.push(&format!("{tap}_in"), HcCollapse { dim: self.c.hidden }, &[pre, x]);
        (y, post, mix)
    }

    fn expand(&mut self, tap: &str, inputs: [Value; 4]) -> Value {
        self.b.push(tap, HcExpand { streams: self.c.streams, dim: self.c.hidden }, &inputs)
    }

    fn head_weights(&mut self, x: Value) -> Value {
        let n = self.c.streams;
        let q = self.projection("hc_head", x, self.names.whole("hc_head_fn"), n);
        let op = HcWeights {
            part: HcPart::Pre,
            streams: n,
            width: n,
            base: self.names.whole("hc_head_base"),
            scale: self.names.whole("hc_head_scale"),
            eps: self.c.hc_eps,
        };
        let pre = self.b.push("hc_head_pre", op, &[q]);
        self.b.widen();
        pre
    }

    fn attention(&mut self, x: Value, kind: Attention) -> Value {
        let c = self.c;
        let (heads, dim) = (c.heads, c.dim);
        let rope = if kind == Attention::Sliding { &c.main } else { &c.compress };
        let (queries, keys) = ((Axis::Tokens, heads, dim), (Axis::Tokens, 1, dim));

        let u = self.linear("q_a_proj", x, "attn.wq_a.weight", c.hidden, c.q_rank);
        let u = self.norm("q_a_norm", u, "attn.q_norm.weight", c.q_rank);
        let q = self.linear("q_proj", u, "attn.wq_b.weight", c.q_rank, heads * dim);
        let unit = WideNorm { weight: None, eps: c.eps, dim, heads: Some(heads), rows: Axis::Tokens };
        let q = self.b.push("q_norm", unit, &[q]);
        let q = self.rope("q_rope", q, rope, queries, false);
        let k = self.linear("kv_proj", x, "attn.wkv.weight", c.hidden, dim);
        let k = self.norm("kv_norm", k, "attn.kv_norm.weight", dim);
        let k = self.rope("kv_rope", k, rope, keys, false);
        let k = self.through(k, "kv_quant", FakeFormat::Fp8 { kept: c.rotated }, dim);
        let k = self.b.push("kv_cache", Cache { heads: 1, dim }, &[k]);

        let (keys, ratio, choice) = match kind {
            Attention::Sliding => (k, None, None),
            Attention::Every { ratio } => {
                let e = self.compressor(x, &main_compressor(dim, ratio, false));
                (self.b.push("attn_keys", JoinKeys { ratio, dim }, &[k, e]), Some(ratio), None)
            }
            Attention::Chosen { ratio } => {
                let e = self.compressor(x, &main_compressor(dim, ratio, true));
                let choice = self.indexer(x, u, ratio);
                (self.b.push("attn_keys", JoinKeys { ratio, dim }, &[k, e]), Some(ratio), Some(choice))
            }
        };
        let sees = VisibleKeys { window: c.window, ratio };
        let inputs: Vec<Value> = std::iter::once(keys).chain(choice).collect();
        let visible = self.b.push("visible_keys", sees, &inputs);
        let scale = (dim as f64).powf(-0.5);
        let s = self.b.push("attn_scores", AttnScores { heads, kv_heads: 1, dim, scale }, &[q, keys]);
        if let Some(ratio) = ratio {
            self.b.of_candidates(ratio);
        }
        let sink = Some(self.tensor("attn.attn_sink"));
        let p = self.b.push("attn_probs", SinkProbs { heads, sink }, &[s, visible]);
        let o = self.b.push("attn_heads", AttnHeads { heads, kv_heads: 1, dim }, &[p, keys]);
        let o = self.rope("attn_unrotated", o, rope, queries, true);
        let grouped = GroupedLinear {
            weight: self.tensor("attn.wo_a.weight"),
            groups: c.groups,
            input: heads * dim / c.groups,
            output: c.o_rank,
        };
        let o = self.b.push("attn_groups", grouped, &[o]);
        self.linear("attn_out", o, "attn.wo_b.weight", c.groups * c.o_rank, c.hidden)
    }

    /// A short format and back, in a simulation.
    fn through(&mut self, x: Value, tap: &str, format: FakeFormat, dim: usize) -> Value {
        if self.simulated { self.b.push(tap, FakeQuant { format, dim }, &[x]) } else { x }
    }

    /// The compressed entries so far.
    fn compressor(&mut self, x: Value, k: &Compressor) -> Value {
        let [kv, gate, kv_all, gate_all, pool, norm, entry, entries] = k.taps;
        let Compressor { dim, ratio, overlap, .. } = *k;
        let ape = self.tensor(&format!("{}.ape", k.tensors));
        let op = Pool { ratio, dim, overlap, ape };
        let width = op.width();
        let mut rows = |tap: &str, stored: &str, matrix: &str| {
            let v = self.linear(tap, x, &format!("{}.{matrix}.weight", k.tensors), self.c.hidden, width);
            self.b.push(stored, Cache { heads: 1, dim: width }, &[v])
        };
        let values = rows(kv, kv_all, "wkv");
        let gates = rows(gate, gate_all, "wgate");
        let v = self.b.push(pool, op, &[values, gates]);
        let v = self.norm_of(norm, v, &format!("{}.norm.weight", k.tensors), dim, Axis::NewEntries(ratio));
        let compress = &self.c.compress;
        let v = self.rope(entry, v, compress, (Axis::NewEntries(ratio), 1, dim), false);
        let v = self.through(v, k.quantised.0, k.quantised.1(self.c), dim);
        self.b.push(entries, EntryCache { ratio, dim }, &[v])
    }

    /// The entries that each token attends to.
    fn indexer(&mut self, x: Value, u: Value, ratio: usize) -> Value {
        let (heads, dim, k) = (self.c.index_heads, self.c.index_dim, self.c.index_k);
        let q = self.linear("index_q_proj", u, "attn.indexer.wq_b.weight", self.c.q_rank, heads * dim);
        let compress = &self.c.compress;
        let q = self.rope("index_q", q, compress, (Axis::Tokens, heads, dim), false);
        let q = self.through(q, "index_q_quant", FakeFormat::TurnedFp4, dim);
        let weights = "attn.indexer.weights_proj.weight";
        let w = self.linear("index_weights", x, weights, self.c.hidden, heads);
        let e = self.compressor(x, &index_compressor(dim, ratio));
        let s = self.b.push("index_scores", IndexScores { heads, dim, ratio, relu: true }, &[q, w, e]);
        self.b.widen();
        self.b.push("index_topk", IndexTopK { k, ratio }, &[s])
    }

    fn experts(&mut self, x: Value, hashed: bool) -> Value {
        let c = self.c;
        let (hidden, inner, k) = (c.hidden, c.inner, c.chosen);
        let limit = Some(Limit { at: c.limit, gate: GateLimit::Above });
        let l = self.linear("router_logits", x, "ffn.gate.weight", hidden, c.experts);
        let s = self.b.push("router_scores", RouterScores { scoring: c.scoring, wide: false }, &[l]);
        let choice = if hashed {
            let table = self.tensor("ffn.gate.tid2eid");
            self.b.push("router_topk", TableChoice { table, vocab: c.vocab, k }, &[])
        } else {
            let bias = Some(self.tensor("ffn.gate.bias"));
            self.b.push("router_topk", TopK { k, bias, candidates: c.experts }, &[s])
        };
        let weigh = RouterWeights { normalise: Some(TINY), scale: c.routed_scale, wide: false };
        let w = self.b.push("router_weights", weigh, &[s, choice]);
        let experts = Experts {
            experts: (0..c.experts).map(|e| self.expert(e)).collect(),
            activation: Activation::Silu,
            limit,
            dim: hidden,
            inner,
        };
        let routed = self.b.push("experts_out", experts, &[x, choice, w]);
        let gate = self.linear("shared_gate_proj", x, "ffn.shared_experts.w1.weight", hidden, inner);
        let up = self.linear("shared_up_proj", x, "ffn.shared_experts.w3.weight", hidden, inner);
        let act = GatedAct { activation: Activation::Silu, limit };
        let act = self.b.push("shared_act", act, &[gate, up]);
        let shared = self.linear("shared_out", act, "ffn.shared_experts.w2.weight", inner, hidden);
        self.b.push("mlp_out", Add, &[routed, shared])
    }

    fn expert(&self, e: usize) -> Expert {
        let (d, ffn, n) = (self.c.hidden, self.c.inner, self.c.experts);
        let fused =
            self.names.fused(self.layer, "gate_up_proj").zip(self.names.fused(self.layer, "down_proj"));
        if let Some((gate_up, down)) = fused {
            // Gate rows first, then up.
            let rows = |first| Slice {
                tensor: gate_up.clone(),
                shape: vec![n, 2 * ffn, d],
                first: e * 2 * ffn + first,
                rows: ffn,
            };
            return Expert { gate: rows(0), up: rows(ffn), down: Slice::of_stack(down, e, [n, d, ffn]) };
        }
        let matrix = |m, rows, cols| Slice::whole(self.names.expert(self.layer, e, m), rows, cols);
        Expert { gate: matrix("w1", ffn, d), up: matrix("w3", ffn, d), down: matrix("w2", d, ffn) }
    }
}

fn main_compressor(dim: usize, ratio: usize, overlap: bool) -> Compressor {
    let taps = [
        "comp_kv",
        "comp_gate",
        "comp_kv_rows",
        "comp_gate_rows",
        "comp_pool",
        "comp_norm",
        "kv_entry",
        "kv_entries",
    ];
    let quantised: (_, fn(&V4Config) -> FakeFormat) =
        ("entry_quant", |c| FakeFormat::Fp8 { kept: c.rotated });
    Compressor { taps, tensors: "attn.compressor", dim, ratio, overlap, quantised }
}

fn index_compressor(dim: usize, ratio: usize) -> Compressor {
    let taps = [
        "index_kv",
        "index_gate",
        "index_kv_rows",
        "index_gate_rows",
        "index_pool",
        "index_norm",
        "index_entry",
        "index_entries",
    ];
    let quantised: (_, fn(&V4Config) -> FakeFormat) = ("index_entry_quant", |_| FakeFormat::TurnedFp4);
    Compressor { taps, tensors: "attn.indexer.compressor", dim, ratio, overlap: true, quantised }
}
