//! From a program to what the kernels compute: the runs of operations that they fuse.
//!
//! The program is matched operation by operation, names and inputs alike. What does not match is refused: the
//! engine never computes something near what the program says.

use firstdiff_model::ops::{Activation, Linear, RmsNorm, Rope};
use firstdiff_model::{Op, OpKind, Program, Value};

use crate::cuda::Error;

/// Taps of a layer, in the order of `kernels/common.cu`.
pub(super) const LAYER_TAPS: [&str; 21] = [
    "attn_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "k_cache",
    "v_cache",
    "attn_scores",
    "attn_probs",
    "attn_heads",
    "attn_out",
    "attn_resid",
    "mlp_norm",
    "gate_proj",
    "up_proj",
    "mlp_act",
    "mlp_out",
    "out",
];
/// Taps outside layers, after all layers' in the kernels' table.
pub(super) const MODEL_TAPS: [&str; 3] = ["embed", "final_norm", "logits"];

/// A model as the kernels see it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub embed: String,
    pub layers: Vec<LayerPlan>,
    pub final_norm: String,
    pub head: String,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub eps: f64,
    pub scale: f64,
    pub activation: Activation,
    pub rope: Rope,
    /// Of every operation: its place in the kernels' table of taps.
    pub places: Vec<usize>,
}

/// One layer: the weights its kernels read.
#[derive(Clone, Debug)]
pub(super) struct LayerPlan {
    pub attn_norm: String,
    /// q, k, v, o, gate, up, down.
    pub linear: [Linear; 7],
    pub q_norm: Option<String>,
    pub k_norm: Option<String>,
    pub mlp_norm: String,
    pub window: Option<usize>,
}

/// Walks a program and refuses what it does not expect.
struct Matcher<'p> {
    ops: &'p [Op],
    at: usize,
    places: Vec<usize>,
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { what: what.into() }
}

impl<'p> Matcher<'p> {
    /// The next operation, which must have this name and these inputs.
    fn take(&mut self, tap: &str, place: usize, inputs: &[Value]) -> Result<(&'p Op, Value), Error> {
        let op = self.ops.get(self.at).ok_or_else(|| unsupported(format!("it ends where '{tap}' is due")))?;
        if op.tap != tap || op.inputs != inputs {
            return Err(unsupported(format!("operation '{}' stands where '{tap}' is due", op.tap)));
        }
        self.places.push(place);
        self.at += 1;
        Ok((op, Value(self.at - 1)))
    }

    fn next_is(&self, tap: &str) -> bool {
        self.ops.get(self.at).is_some_and(|op| op.tap == tap)
    }
}

/// The operation as a given kind.
macro_rules! kind {
    ($op:expr, $variant:ident) => {
        match &$op.kind {
            OpKind::$variant(inner) => inner,
            other => {
                return Err(unsupported(format!("'{}' is a {}", $op.tap, other.name())));
            }
        }
    };
}

impl Plan {
    pub fn new(program: &Program) -> Result<Plan, Error> {
        let model_places = |n: usize, layers: usize| layers * LAYER_TAPS.len() + n;
        let mut m = Matcher { ops: &program.ops, at: 0, places: vec![] };
        let layers = (0..).take_while(|n| program.find(&format!("layers.{n}.attn_norm")).is_some()).count();
        let (op, mut x) = m.take("embed", model_places(0, layers), &[])?;
        let embed = kind!(op, Embed).clone();
        let mut shape: Option<(usize, usize, usize, f64)> = None;
        let mut rope: Option<Rope> = None;
        let mut eps: Option<f64> = None;
        let mut activation: Option<Activation> = None;
        let mut plans = Vec::new();
        for layer in 0..layers {
            let place = |tap: &str| {
                let within = LAYER_TAPS.iter().position(|t| *t == tap).unwrap_or(0);
                layer * LAYER_TAPS.len() + within
            };
            let mut take =
                |tap: &str, inputs: &[Value]| m.take(&format!("layers.{layer}.{tap}"), place(tap), inputs);
            let norm = |op: &Op, eps: &mut Option<f64>| -> Result<RmsNorm, Error> {
                let norm = kind!(op, RmsNorm);
                if *eps.get_or_insert(norm.eps) != norm.eps {
                    return Err(unsupported(format!("'{}' has an epsilon of its own", op.tap)));
                }
                Ok(norm.clone())
            };
            let (op, h) = take("attn_norm", &[x])?;
            let attn_norm = norm(op, &mut eps)?.weight;
            let (q_op, mut q) = take("q_proj", &[h])?;
            let (k_op, mut k) = take("k_proj", &[h])?;
            let (v_op, v) = take("v_proj", &[h])?;
            let (mut q_norm, mut k_norm) = (None, None);
            if m.next_is(&format!("layers.{layer}.q_norm")) {
                let mut take = |tap: &str, inputs: &[Value]| {
                    m.take(&format!("layers.{layer}.{tap}"), place(tap), inputs)
                };
                let (op, value) = take("q_norm", &[q])?;
                (q_norm, q) = (Some(norm(op, &mut eps)?.weight), value);
                let (op, value) = take("k_norm", &[k])?;
                (k_norm, k) = (Some(norm(op, &mut eps)?.weight), value);
            }
            let mut take =
                |tap: &str, inputs: &[Value]| m.take(&format!("layers.{layer}.{tap}"), place(tap), inputs);
            for (tap, value) in [("q_rope", &mut q), ("k_rope", &mut k)] {
                let (op, turned) = take(tap, &[*value])?;
                let this = kind!(op, Rope);
                let first = rope.get_or_insert_with(|| this.clone());
                if first.frequencies != this.frequencies || first.amplitude != this.amplitude {
                    return Err(unsupported(format!("'{}' turns by frequencies of its own", op.tap)));
                }
                *value = turned;
            }
            let (_, keys) = take("k_cache", &[k])?;
            let (_, values) = take("v_cache", &[v])?;
            let (op, scores) = take("attn_scores", &[q, keys])?;
            let s = kind!(op, AttnScores);
            let this = (s.heads, s.kv_heads, s.dim, s.scale);
            if *shape.get_or_insert(this) != this {
                return Err(unsupported(format!("'{}' has another shape than the layers before", op.tap)));
            }
            let (op, probs) = take("attn_probs", &[scores])?;
            let window = kind!(op, AttnProbs).window;
            let (op, heads) = take("attn_heads", &[probs, values])?;
            kind!(op, AttnHeads);
            let (o_op, o) = take("attn_out", &[heads])?;
            let (op, resid) = take("attn_resid", &[x, o])?;
            kind!(op, Add);
            let (op, h) = take("mlp_norm", &[resid])?;
            let mlp_norm = norm(op, &mut eps)?.weight;
            let (gate_op, gate) = take("gate_proj", &[h])?;
            let (up_op, up) = take("up_proj", &[h])?;
            let (op, act) = take("mlp_act", &[gate, up])?;
            let gated = kind!(op, GatedAct);
            let this = gated.activation;
            if gated.limit.is_some() || !matches!(this, Activation::Silu | Activation::GeluTanh) {
                return Err(unsupported(format!("'{}' is an activation without a kernel", op.tap)));
            }
            if *activation.get_or_insert(this) != this {
                return Err(unsupported(format!("'{}' has an activation of its own", op.tap)));
            }
            let (down_op, down) = take("mlp_out", &[act])?;
            let (op, out) = take("out", &[resid, down])?;
            kind!(op, Add);
            x = out;
            let linear = |op: &Op| -> Result<Linear, Error> { Ok(kind!(op, Linear).clone()) };
            let linear = [
                linear(q_op)?,
                linear(k_op)?,
                linear(v_op)?,
                linear(o_op)?,
                linear(gate_op)?,
                linear(up_op)?,
                linear(down_op)?,
            ];
            plans.push(LayerPlan { attn_norm, linear, q_norm, k_norm, mlp_norm, window });
        }
        let (op, h) = m.take("final_norm", model_places(1, layers), &[x])?;
        let last = kind!(op, RmsNorm);
        let (op, _) = m.take("logits", model_places(2, layers), &[h])?;
        let head = kind!(op, Linear).clone();
        let (Some((heads, kv_heads, head_dim, scale)), Some(rope), Some(eps), Some(activation)) =
            (shape, rope, eps, activation)
        else {
            return Err(unsupported("it has no layers"));
        };
        if m.at != program.ops.len() || last.eps != eps || head.bias.is_some() {
            return Err(unsupported("it ends otherwise than in a norm and an output matrix"));
        }
        let plan = Plan {
            embed: embed.weight,
            hidden: embed.dim,
            ffn: plans.first().map_or(0, |l| l.linear[6].input),
            layers: plans,
            final_norm: last.weight.clone(),
            head: head.weight,
            heads,
            kv_heads,
            head_dim,
            vocab: program.vocab,
            eps,
            scale,
            activation,
            rope,
            places: m.places,
        };
        plan.check()?;
        Ok(plan)
    }

    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Entries of the kernels' table of taps.
    pub fn tap_places(&self) -> usize {
        self.layers.len() * LAYER_TAPS.len() + MODEL_TAPS.len()
    }

    /// What the kernels take for granted.
    fn check(&self) -> Result<(), Error> {
        for (what, n) in [("hidden size", self.hidden), ("MLP size", self.ffn), ("head size", self.head_dim)]
        {
            if n == 0 || !n.is_multiple_of(8) {
                return Err(unsupported(format!("its {what} is {n}, not a multiple of 8")));
            }
        }
        if self.head_dim > 256
            || !self.heads.is_multiple_of(self.kv_heads.max(1))
            || self.heads / self.kv_heads > 14
        {
            let (heads, kv) = (self.heads, self.kv_heads);
            return Err(unsupported(format!("{heads} query heads on {kv} key heads of {}", self.head_dim)));
        }
        let expected = [
            (self.q_dim(), self.hidden),
            (self.kv_dim(), self.hidden),
            (self.kv_dim(), self.hidden),
            (self.hidden, self.q_dim()),
            (self.ffn, self.hidden),
            (self.ffn, self.hidden),
            (self.hidden, self.ffn),
        ];
        for layer in &self.layers {
            for (linear, (output, input)) in layer.linear.iter().zip(expected) {
                if (linear.output, linear.input) != (output, input) {
                    return Err(unsupported(format!("'{}' has a shape of its own", linear.weight)));
                }
            }
        }
        Ok(())
    }
}
