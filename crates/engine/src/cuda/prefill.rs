//! A prompt: every operation over all rows at once, matrix products on tensor cores.

use firstdiff_model::{Program, RopeFrequencies, Value, extents};
use firstdiff_tensor::DType;

use crate::cuda::blas::Blas;
use crate::cuda::compile::Kernels;
use crate::cuda::device::{Buffer, Gpu, Shape};
use crate::cuda::engine::angles;
use crate::cuda::plan::Plan;
use crate::cuda::weights::{Mat, Weights};
use crate::cuda::{Error, Tap, Wanted};

/// Buffers for the rows of one step; they grow with the longest prompt.
#[derive(Debug)]
pub(super) struct Rows {
    rows: usize,
    pub x: Buffer,
    hidden: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    heads: Buffer,
    gate: Buffer,
    up: Buffer,
    act: Buffer,
    tokens: Buffer,
}

impl Rows {
    pub fn new(gpu: &Gpu, plan: &Plan, rows: usize) -> Result<Rows, Error> {
        let bf16 = |width: usize| gpu.poisoned(rows * width * 2);
        Ok(Rows {
            rows,
            x: bf16(plan.hidden)?,
            hidden: bf16(plan.hidden)?,
            q: bf16(plan.q_dim())?,
            k: bf16(plan.kv_dim())?,
            v: bf16(plan.kv_dim())?,
            heads: bf16(plan.q_dim())?,
            gate: bf16(plan.ffn)?,
            up: bf16(plan.ffn)?,
            act: bf16(plan.ffn)?,
            tokens: gpu.poisoned(rows * 4)?,
        })
    }

    pub fn hold(&self, rows: usize) -> bool {
        rows <= self.rows
    }
}

/// What a prompt's step works with.
pub(super) struct Prompt<'e> {
    pub gpu: &'e Gpu,
    pub kernels: &'e Kernels,
    pub blas: &'e Blas,
    pub program: &'e Program,
    pub plan: &'e Plan,
    pub weights: &'e Weights,
    pub rows: &'e Rows,
    /// A matrix brought to bf16; as large as the largest.
    pub wide: Option<&'e Buffer>,
    pub cache: u64,
    pub rope: u64,
    pub context: usize,
    pub position: usize,
    pub count: usize,
    pub wanted: &'e Wanted,
    pub taps: Vec<Tap>,
}

impl Prompt<'_> {
    /// Copies the tokens to the GPU.
    pub fn load(&self, tokens: &[u32]) -> Result<(), Error> {
        let tokens: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
        self.gpu.write(&self.rows.tokens, &tokens)
    }

    /// Runs the layers on the loaded tokens; the residual stream is left in `rows.x`.
    pub fn run(&mut self) -> Result<(), Error> {
        let (gpu, plan, r) = (self.gpu, self.plan, self.rows);
        let n = self.count;
        gpu.launch(
            &self.kernels.embed_rows,
            Shape::new(n as u32, 128),
            &[&self.weights.embed, &r.tokens.at, &r.x.at],
        )?;
        self.keep("embed", r.x.at)?;
        // With dynamic scaling all rows turn by the frequencies of the step's last position.
        let step_angles = match plan.rope.frequencies {
            RopeFrequencies::Fixed(_) => None,
            RopeFrequencies::Dynamic { .. } => {
                let last = self.position + n - 1;
                Some(gpu.upload(&angles(plan, self.position..last + 1, |_| last))?)
            }
        };
        let rope = match &step_angles {
            Some(buffer) => buffer.at,
            None => self.rope + (self.position * plan.head_dim * 4) as u64,
        };
        for layer in 0..plan.layers.len() {
            self.attention(layer, rope)?;
            self.mlp(layer)?;
        }
        Ok(())
    }

    fn norm(&self, weight: u64, out: u64) -> Result<(), Error> {
        let shape = Shape::new(self.count.div_ceil(8) as u32, 256);
        self.gpu.launch(
            &self.kernels.norm_rows,
            shape,
            &[&self.rows.x.at, &weight, &out, &(self.count as i32)],
        )
    }

    /// One of the layer's matrix products, with its bias.
    fn linear(&self, layer: usize, which: usize, x: u64, y: u64) -> Result<(), Error> {
        let linear = &self.plan.layers[layer].linear[which];
        let mat = self.weights.layers[layer].mats[which];
        let w = self.in_bf16(&mat, linear.output, linear.input)?;
        self.blas.product(x, w, y, self.count, linear.input, linear.output)?;
        let bias = self.weights.layers[layer].biases[which];
        if bias != 0 {
            let n = self.count * linear.output;
            let args: [&dyn crate::cuda::device::Argument; 4] =
                [&y, &bias, &(linear.output as i32), &(n as i64)];
            self.gpu.launch(&self.kernels.bias_rows, Shape::elements(n), &args)?;
        }
        Ok(())
    }

    fn in_bf16(&self, mat: &Mat, rows: usize, width: usize) -> Result<u64, Error> {
        let Some(wide) = self.wide.filter(|_| !mat.is_bf16()) else { return Ok(mat.at) };
        self.gpu.launch(
            &self.kernels.widen,
            Shape::new(rows as u32, 128),
            &[mat, &(width as i32), &wide.at],
        )?;
        Ok(wide.at)
    }

    /// The matrix products of all layers and nothing else: what benchmarks time.
    pub fn products(&self) -> Result<(), Error> {
        let r = self.rows;
        for layer in 0..self.plan.layers.len() {
            let x = [r.hidden.at, r.hidden.at, r.hidden.at, r.heads.at, r.hidden.at, r.hidden.at, r.act.at];
            let y = [r.q.at, r.k.at, r.v.at, r.hidden.at, r.gate.at, r.up.at, r.hidden.at];
            for which in 0..7 {
                self.linear(layer, which, x[which], y[which])?;
            }
        }
        Ok(())
    }

    /// Final norm and output matrix by cuBLAS, in bf16: a baseline.
    pub fn head(&self, logits: u64) -> Result<(), Error> {
        if !self.weights.head.is_bf16() {
            let what = "its output matrix is not bf16, as cuBLAS takes it: this baseline needs a bf16 model";
            return Err(Error::Unsupported { what: what.into() });
        }
        self.norm(self.weights.final_norm, self.rows.hidden.at)?;
        let (rows, width) = (self.plan.vocab, self.plan.hidden);
        self.blas.product(self.rows.hidden.at, self.weights.head.at, logits, self.count, width, rows)
    }

    fn add(&self, y: u64) -> Result<(), Error> {
        let n = self.count * self.plan.hidden;
        self.gpu.launch(&self.kernels.add_rows, Shape::elements(n), &[&self.rows.x.at, &y, &(n as i64)])
    }

    fn attention(&mut self, layer: usize, rope: u64) -> Result<(), Error> {
        let (gpu, plan, r, n) = (self.gpu, self.plan, self.rows, self.count);
        let w = self.weights.layers[layer];
        let tap = |name: &str| format!("layers.{layer}.{name}");
        self.norm(w.attn_norm, r.hidden.at)?;
        self.keep(&tap("attn_norm"), r.hidden.at)?;
        for (which, (name, y)) in
            [("q_proj", r.q.at), ("k_proj", r.k.at), ("v_proj", r.v.at)].into_iter().enumerate()
        {
            self.linear(layer, which, r.hidden.at, y)?;
            self.keep(&tap(name), y)?;
        }
        let plane = (plan.kv_heads * self.context * plan.head_dim * 2) as u64;
        let keys = self.cache + 2 * layer as u64 * plane;
        let values = keys + plane;
        let side = |name: &str, width: usize| -> Result<Option<Buffer>, Error> {
            let op = self.program.find(&tap(name));
            op.filter(|op| self.wanted.has(op.0)).map(|_| gpu.poisoned(n * width * 2)).transpose()
        };
        let (q_norm, k_norm) = (side("q_norm", plan.q_dim())?, side("k_norm", plan.kv_dim())?);
        let k_rope = side("k_rope", plan.kv_dim())?;
        let at = |b: &Option<Buffer>| b.as_ref().map_or(0, |b| b.at);
        let warps = n * (plan.heads + 2 * plan.kv_heads);
        gpu.launch(
            &self.kernels.rotate_rows,
            Shape::new(warps.div_ceil(8) as u32, 256),
            &[
                &r.q.at,
                &r.k.at,
                &r.v.at,
                &w.q_norm,
                &w.k_norm,
                &rope,
                &keys,
                &values,
                &at(&q_norm),
                &at(&k_norm),
                &at(&k_rope),
                &(n as i32),
                &(self.position as i32),
                &(self.context as i32),
            ],
        )?;
        self.keep(&tap("q_norm"), at(&q_norm))?;
        self.keep(&tap("k_norm"), at(&k_norm))?;
        self.keep(&tap("q_rope"), r.q.at)?;
        self.keep(&tap("k_rope"), at(&k_rope))?;
        let visible = self.position + n;
        for (name, from) in [("k_cache", keys), ("v_cache", values)] {
            let Some(_) = self.program.find(&tap(name)).filter(|op| self.wanted.has(op.0)) else { continue };
            let out = gpu.poisoned(visible * plan.kv_dim() * 2)?;
            gpu.launch(
                &self.kernels.cache_tap,
                Shape::elements(visible * plan.kv_dim()),
                &[&from, &out.at, &(visible as i32), &(self.context as i32)],
            )?;
            self.keep(&tap(name), out.at)?;
        }
        self.heads(layer, keys, values)?;
        self.linear(layer, 3, r.heads.at, r.hidden.at)?;
        self.keep(&tap("attn_out"), r.hidden.at)?;
        self.add(r.hidden.at)?;
        self.keep(&tap("attn_resid"), r.x.at)
    }

    fn heads(&mut self, layer: usize, keys: u64, values: u64) -> Result<(), Error> {
        let (gpu, plan, r, n) = (self.gpu, self.plan, self.rows, self.count);
        let tap = |name: &str| format!("layers.{layer}.{name}");
        let wants = |name: &str| self.program.find(&tap(name)).is_some_and(|op| self.wanted.has(op.0));
        let lines = plan.heads * n;
        let visible = self.position + n;
        let window = plan.layers[layer].window.map_or(0, |w| i32::try_from(w).unwrap_or(0));
        let wants_probs = wants("attn_probs");
        let (mut scores, mut sums) = (None, None);
        if wants_probs || wants("attn_scores") {
            let buffer = gpu.poisoned(lines * visible * 4)?;
            // Tiles that no row sees are not computed: their scores are those of masked keys.
            gpu.fill(buffer.at, 0xff80_0000, lines * visible)?;
            scores = Some(buffer);
            sums = Some(gpu.poisoned(lines * 8)?);
        }
        let at = |b: &Option<Buffer>| b.as_ref().map_or(0, |b| b.at);
        let (rows, position) = (n as i32, self.position as i32);
        let shape = Shape { grid: (n.div_ceil(64) as u32, plan.heads as u32), ..Shape::new(1, 128) };
        gpu.launch(
            &self.kernels.flash,
            shape,
            &[
                &r.q.at,
                &keys,
                &values,
                &r.heads.at,
                &at(&scores),
                &at(&sums),
                &rows,
                &position,
                &(self.context as i32),
                &window,
            ],
        )?;
        if scores.is_some() {
            self.keep(&tap("attn_scores"), at(&scores))?;
        }
        if wants_probs {
            let probs = gpu.poisoned(lines * visible * 4)?;
            let shape = Shape { grid: (n as u32, plan.heads as u32), ..Shape::new(1, 256) };
            gpu.launch(
                &self.kernels.probs_tap,
                shape,
                &[&at(&scores), &at(&sums), &probs.at, &rows, &position, &window],
            )?;
            self.keep(&tap("attn_probs"), probs.at)?;
        }
        self.keep(&tap("attn_heads"), r.heads.at)
    }

    fn mlp(&mut self, layer: usize) -> Result<(), Error> {
        let (gpu, plan, r, n) = (self.gpu, self.plan, self.rows, self.count);
        let tap = |name: &str| format!("layers.{layer}.{name}");
        self.norm(self.weights.layers[layer].mlp_norm, r.hidden.at)?;
        self.keep(&tap("mlp_norm"), r.hidden.at)?;
        self.linear(layer, 4, r.hidden.at, r.gate.at)?;
        self.keep(&tap("gate_proj"), r.gate.at)?;
        self.linear(layer, 5, r.hidden.at, r.up.at)?;
        self.keep(&tap("up_proj"), r.up.at)?;
        let count = n * plan.ffn;
        gpu.launch(
            &self.kernels.act_rows,
            Shape::elements(count),
            &[&r.gate.at, &r.up.at, &r.act.at, &(count as i64)],
        )?;
        self.keep(&tap("mlp_act"), r.act.at)?;
        self.linear(layer, 6, r.act.at, r.hidden.at)?;
        self.keep(&tap("mlp_out"), r.hidden.at)?;
        self.add(r.hidden.at)?;
        self.keep(&tap("out"), r.x.at)
    }

    /// Copies a value where it is wanted, before anything overwrites it.
    fn keep(&mut self, name: &str, at: u64) -> Result<(), Error> {
        let Some(Value(op)) = self.program.find(name).filter(|op| self.wanted.has(op.0)) else {
            return Ok(());
        };
        let entry = &self.program.ops[op];
        let shape = extents(&entry.axes, self.count, self.position + self.count);
        let f32s = name.ends_with("attn_scores") || name.ends_with("attn_probs");
        let dtype = if f32s { DType::F32 } else { DType::BF16 };
        let mut bytes = vec![0u8; shape.iter().product::<usize>() * dtype.size()];
        self.gpu.read(at, &mut bytes)?;
        self.taps.push(Tap { name: name.to_string(), shape, dtype, bytes });
        Ok(())
    }
}
