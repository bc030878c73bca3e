//! A model on a GPU.

use std::ops::Range;

use firstdiff_checkpoint::Format;
use firstdiff_model::ops::Activation;
use firstdiff_model::{Model, Program};
use firstdiff_trace::ArithmeticSpec;

use crate::cuda::blas::Blas;
use crate::cuda::compile::{Defines, Kernels};
use crate::cuda::decode::{FEEDERS, Layout, PHASES, SideBuffer, StepArgs, WARPS};
use crate::cuda::device::{Buffer, Gpu, Shape, doing};
use crate::cuda::plan::Plan;
use crate::cuda::prefill::{Prompt, Rows};
use crate::cuda::sample::Choosing;
use crate::cuda::weights::{Storing, Weights};
use crate::cuda::{Device, Error, Tap, Wanted};

/// How to load a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The GPU, counted from 0.
    pub device: usize,
    /// Tokens that the cache holds.
    pub context: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { device: 0, context: 4096 }
    }
}

/// Memory of the GPU that a model takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub weights: usize,
    /// Cached keys and values.
    pub cache: usize,
    /// Everything else; prompts and taps come on top.
    pub scratch: usize,
}

/// What a step gives.
#[derive(Clone, Debug)]
pub struct Step {
    /// The token with the largest logit after the last row; the first of several.
    pub best: u32,
    /// The wanted values, in the program's order.
    pub taps: Vec<Tap>,
}

/// What changes while tokens run.
#[derive(Debug)]
pub(super) struct State {
    pub cache: Buffer,
    pub rope: Buffer,
    pub layers: Buffer,
    /// The last row of a prompt, after all layers.
    pub row: Buffer,
    /// What blocks hand to each other: 8 bytes a pair of values.
    pub middle: Buffer,
    pub out: Buffer,
    pub qkv: Buffer,
    pub heads: Buffer,
    pub act: Buffer,
    pub logits: Buffer,
    pub partial: Buffer,
    pub arrivals: Buffer,
    pub best: Buffer,
    pub barrier: Buffer,
    pub state: Buffer,
    pub chosen: Buffer,
    pub wide: Option<Buffer>,
}

/// A model on a GPU, with the cache of one sequence.
#[derive(Debug)]
pub struct Engine {
    pub(super) gpu: Gpu,
    pub(super) program: Program,
    pub(super) plan: Plan,
    pub(super) storing: Storing,
    pub(super) kernels: Kernels,
    pub(super) layout: Layout,
    pub(super) weights: Weights,
    pub(super) state: State,
    blas: Blas,
    rows: Option<Rows>,
    pub(super) side: SideBuffer,
    pub(super) choosing: Option<Choosing>,
    memory: Memory,
    pub(super) context: usize,
    position: usize,
    /// Of the next step's first layer: `kernels/exchange.cu`.
    round: u32,
    gguf: bool,
}

/// Cosines, then sines, of each position; `last` is the last position of the step that it belongs to.
pub(super) fn angles(plan: &Plan, positions: Range<usize>, last: impl Fn(usize) -> usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(positions.len() * plan.head_dim);
    let mut before: Option<(usize, Vec<f64>)> = None;
    for position in positions {
        let last = last(position);
        let frequencies = match before.take() {
            Some((at, f)) if at == last => f,
            _ => plan.rope.frequencies.at(last as u32),
        };
        let turns = frequencies.iter().map(|f| (f * position as f64).sin_cos());
        let (sines, cosines): (Vec<f64>, Vec<f64>) = turns.unzip();
        out.extend(cosines.iter().chain(&sines).map(|x| (x * plan.rope.amplitude) as f32));
        before = Some((last, frequencies));
    }
    out
}

/// Blocks of the decode kernel and what it is compiled for.
pub(super) fn defines(plan: &Plan, storing: Storing, layout: &Layout, blocks: usize) -> Defines {
    let number = |name, n: usize| (name, n.to_string());
    vec![
        number("D_MODEL", plan.hidden),
        number("LAYERS", plan.layers.len()),
        number("HEADS", plan.heads),
        number("KV_HEADS", plan.kv_heads),
        number("HEAD_DIM", plan.head_dim),
        number("FFN", plan.ffn),
        number("VOCAB", plan.vocab),
        number("SEG", storing.segment),
        ("FORMATS", storing.formats.to_string()),
        number("BLOCKS", blocks),
        number("WARPS", WARPS),
        number("FEEDERS", FEEDERS),
        number("SLOT", layout.slot),
        number("SLOTS", layout.slots),
        number("X_BYTES", layout.x_bytes),
        number("OWN_BYTES", layout.own_bytes),
        number("SUM_BYTES", layout.sum_bytes),
        ("NORM_EPS", format!("{:e}f", plan.eps)),
        ("SCALE", format!("{:e}f", plan.scale)),
        number("ACTIVATION", usize::from(plan.activation != Activation::Silu)),
    ]
}

impl Engine {
    /// Puts a model on the GPU.
    ///
    /// # Errors
    /// When GPU, driver or a library is missing, when memory does not suffice, or when the model is none
    /// that this engine runs.
    pub fn load(model: &Model, options: &Options) -> Result<Engine, Error> {
        let gpu = Gpu::open(options.device)?;
        let plan = Plan::new(&model.program)?;
        let (storing, _) = Storing::of(&model.checkpoint, &plan)?;
        let memory = Engine::memory_needed(model, options)?;
        let (free, _) = gpu.context.mem_get_info().map_err(doing("asking for free memory"))?;
        let needed = memory.weights + memory.cache + memory.scratch;
        if needed > free {
            let mib = |n: usize| n >> 20;
            return Err(Error::Memory {
                name: gpu.device.name,
                free: mib(free),
                needed: mib(needed),
                weights: mib(memory.weights),
                cache: mib(memory.cache),
                context: options.context,
            });
        }
        let blocks = gpu.device.multiprocessors;
        if plan.heads > blocks {
            let what = format!("{} heads on a GPU of {blocks} multiprocessors", plan.heads);
            return Err(Error::Unsupported { what });
        }
        let layout = Layout::new(&plan, storing, blocks, gpu.device.shared_memory, 12)?;
        let defines = defines(&plan, storing, &layout, blocks);
        let kernels = Kernels::load(&gpu, &defines)?;
        allow_shared(&kernels, &layout)?;
        let blas = Blas::new(&gpu)?;
        let weights = Weights::load(&gpu, &model.checkpoint, &plan, storing)?;
        let state = State::new(&gpu, &plan, &weights, options.context, blocks)?;
        Ok(Engine {
            gpu,
            program: model.program.clone(),
            plan,
            storing,
            kernels,
            layout,
            weights,
            state,
            blas,
            rows: None,
            side: SideBuffer::default(),
            choosing: None,
            memory,
            context: options.context,
            position: 0,
            round: 1,
            gguf: model.checkpoint.format() == Format::Gguf,
        })
    }

    /// Memory that loading `model` takes. Needs no GPU.
    ///
    /// # Errors
    /// When the model is none that this engine runs.
    pub fn memory_needed(model: &Model, options: &Options) -> Result<Memory, Error> {
        let plan = Plan::new(&model.program)?;
        let (storing, weights) = Storing::of(&model.checkpoint, &plan)?;
        let cache = plan.layers.len() * 2 * plan.kv_dim() * options.context * 2;
        let widest = plan.layers.iter().flat_map(|l| l.linear.iter().map(|l| l.input * l.output)).max();
        let wide = if storing.formats == 1 { 0 } else { widest.unwrap_or(0) * 2 };
        let angles = options.context * plan.head_dim * 4;
        Ok(Memory { weights, cache, scratch: (48 << 20) + wide + angles + plan.vocab * 4 })
    }

    /// The GPU in use.
    pub fn device(&self) -> &Device {
        &self.gpu.device
    }

    /// Memory taken.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// How the engine rounds, for traces to declare.
    pub fn arithmetic(&self) -> ArithmeticSpec {
        let text = |s: &str| Some(s.to_string());
        ArithmeticSpec {
            weights: text(if self.gguf { "gguf" } else { "bf16" }),
            activations: text("bf16"),
            accumulate: text("f32"),
            kv_cache: text("bf16"),
            // Prompts are multiplied in bf16: weights of other formats are brought to it.
            matmul_inputs: text(if self.storing.formats == 1 { "as-stored" } else { "bf16" }),
            ..ArithmeticSpec::default()
        }
    }

    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Goes back to where `position` tokens were in the cache; 0 starts anew.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        let wanted = self.position + tokens.len();
        if wanted > self.context {
            return Err(Error::Context { wanted, context: self.context });
        }
        let vocab = self.plan.vocab;
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(&token) => Err(Error::Token { token, vocab }),
            None => Ok(()),
        }
    }

    /// Runs tokens through the model in one step, as a prompt.
    ///
    /// # Errors
    /// When a token is not the model's, the context is too short, or the GPU fails.
    pub fn prefill(&mut self, tokens: &[u32], wanted: &Wanted) -> Result<Step, Error> {
        let mut taps = self.layers_of_prompt(tokens, wanted)?;
        let last = self.position + tokens.len() - 1;
        let head = self.plan.layers.len() as i32 * PHASES;
        let model_only = |tap: &str| tap == "final_norm" || tap == "logits";
        let table = self.side.prepare(&self.gpu, &self.program, &self.plan, wanted, last + 1, model_only)?;
        let step = self.step_args(0, last, table, head);
        self.launch(step)?;
        let best = self.finish(last)?;
        taps.extend(self.side.collect(&self.gpu, &self.program, wanted, last + 1)?);
        Ok(Step { best, taps })
    }

    /// The layers of a prompt, without waiting for them: what benchmarks time. The position stays.
    pub(super) fn layers_of_prompt(&mut self, tokens: &[u32], wanted: &Wanted) -> Result<Vec<Tap>, Error> {
        self.check(tokens)?;
        if !self.rows.as_ref().is_some_and(|r| r.hold(tokens.len())) {
            self.rows = None;
            self.rows = Some(Rows::new(&self.gpu, &self.plan, tokens.len())?);
        }
        let mut prompt = self.prompt(self.position, tokens.len(), wanted)?;
        prompt.load(tokens)?;
        prompt.run()?;
        let taps = prompt.taps;
        let row = (self.plan.hidden * 2) as u64;
        let from = self.rows.as_ref().map_or(0, |r| r.x.at) + (tokens.len() - 1) as u64 * row;
        self.gpu.copy(from, self.state.row.at, row as usize)?;
        Ok(taps)
    }

    /// A prompt's step of so many rows; there must be buffers for them.
    fn prompt<'e>(&'e self, position: usize, count: usize, wanted: &'e Wanted) -> Result<Prompt<'e>, Error> {
        let rows = self.rows.as_ref().filter(|r| r.hold(count)).ok_or(Error::NoTokens)?;
        Ok(Prompt {
            gpu: &self.gpu,
            kernels: &self.kernels,
            blas: &self.blas,
            program: &self.program,
            plan: &self.plan,
            weights: &self.weights,
            rows,
            wide: self.state.wide.as_ref(),
            cache: self.state.cache.at,
            rope: self.state.rope.at,
            context: self.context,
            position,
            count,
            wanted,
            taps: vec![],
        })
    }

    /// One row by the kernels of prompts, to the logits in bf16.
    pub(super) fn record_row(&self, position: usize, logits: u64) -> Result<(), Error> {
        let none = Wanted::none();
        let mut prompt = self.prompt(position, 1, &none)?;
        prompt.run()?;
        prompt.head(logits)
    }

    pub(super) fn products_of_prompt(&self, rows: usize) -> Result<(), Error> {
        self.prompt(0, rows, &Wanted::none())?.products()
    }

    /// Runs one token through the model.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn decode(&mut self, token: u32, wanted: &Wanted) -> Result<Step, Error> {
        self.check(&[token])?;
        let keys = self.position + 1;
        let table = self.side.prepare(&self.gpu, &self.program, &self.plan, wanted, keys, |_| true)?;
        self.tap_hidden_keys(wanted)?;
        let step = self.step_args(token as i32, self.position, table, 0);
        self.launch(step)?;
        let best = self.finish(self.position)?;
        Ok(Step { best, taps: self.side.collect(&self.gpu, &self.program, wanted, keys)? })
    }

    /// Keys outside a window are not read, but they are in the cache: their taps are filled beforehand.
    fn tap_hidden_keys(&self, wanted: &Wanted) -> Result<(), Error> {
        let plane = (self.plan.kv_dim() * self.context * 2) as u64;
        for (n, layer) in self.plan.layers.iter().enumerate() {
            for (kind, tap) in ["k_cache", "v_cache"].into_iter().enumerate() {
                let op = self.program.find(&format!("layers.{n}.{tap}"));
                let Some(op) = op.filter(|op| layer.window.is_some() && wanted.has(op.0)) else { continue };
                let Some(to) = self.side.address(op.0) else { continue };
                let from = self.state.cache.at + (2 * n + kind) as u64 * plane;
                self.gpu.launch(
                    &self.kernels.cache_tap,
                    Shape::elements(self.position * self.plan.kv_dim()),
                    &[&from, &to, &(self.position as i32), &(self.context as i32)],
                )?;
            }
        }
        Ok(())
    }

    /// A step from phase `first` on: 0, or the last phase.
    pub(super) fn step_args(&self, token: i32, position: usize, taps: u64, first: i32) -> StepArgs {
        let s = &self.state;
        StepArgs {
            layers: s.layers.at,
            embed: self.weights.embed,
            head: self.weights.head,
            final_norm: self.weights.final_norm,
            rope: s.rope.at,
            cache: s.cache.at,
            row: s.row.at,
            middle: s.middle.at,
            out: s.out.at,
            qkv: s.qkv.at,
            heads: s.heads.at,
            act: s.act.at,
            partial: s.partial.at,
            logits: s.logits.at,
            arrivals: s.arrivals.at,
            best: s.best.at,
            state: s.state.at,
            chosen: s.chosen.at,
            taps,
            barrier: s.barrier.at,
            round: self.round,
            context: self.context as i32,
            token,
            position: position as i32,
            first,
            unused: 0,
        }
    }

    /// Starts the persistent kernel.
    pub(super) fn launch(&mut self, step: StepArgs) -> Result<(), Error> {
        let kernel = &self.kernels.decode[usize::from(step.taps != 0)];
        self.gpu.launch(kernel, self.layout.shape(self.gpu.device.multiprocessors), &[&step])?;
        self.round = self.round.wrapping_add(self.plan.layers.len() as u32 + 1);
        Ok(())
    }

    /// Waits for the step at `position` and gives the best token after it.
    fn finish(&mut self, position: usize) -> Result<u32, Error> {
        let mut best = [0u32];
        self.gpu.read(self.state.chosen.at + 4 * position as u64, &mut best)?;
        self.position = position + 1;
        Ok(best[0])
    }

    /// The logits after the last row of the last step.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn logits(&self) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0; self.plan.vocab];
        self.gpu.read(self.state.logits.at, &mut out)?;
        Ok(out)
    }

    /// A matrix as the kernels read it, row by row: for tests, beside what the checkpoint says.
    ///
    /// # Errors
    /// When no operation multiplies by a matrix of this name, or the GPU fails.
    pub fn matrix(&self, name: &str) -> Result<Vec<f32>, Error> {
        let unknown = || Error::Unsupported { what: format!("no matrix of it is called '{name}'") };
        let mat = self.weights.by_name.get(name).ok_or_else(unknown)?;
        let shape = self.program.weights().get(name).map(|w| w.shape.clone()).unwrap_or_default();
        let [rows, width] = shape[..] else { return Err(unknown()) };
        let buffer = self.gpu.poisoned(rows * width * 4)?;
        let shape = Shape::new(rows as u32, 128);
        self.gpu.launch(&self.kernels.unpack, shape, &[mat, &(width as i32), &buffer.at])?;
        let mut out = vec![0.0; rows * width];
        self.gpu.read(buffer.at, &mut out)?;
        Ok(out)
    }

    /// Greedy tokens from `first` on: `first` is decoded, then the best token each time, until `count`
    /// were made or `stop` says so of one. The GPU runs ahead of `stop` by a few tokens.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn generate(
        &mut self,
        first: u32,
        count: usize,
        stop: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Vec<u32>, Error> {
        self.check(&[first])?;
        let room = self.context - self.position;
        let count = count.min(room);
        let mut made = Vec::with_capacity(count);
        while made.len() < count {
            const AHEAD: usize = 16;
            let batch = AHEAD.min(count - made.len());
            for n in 0..batch {
                // Only the first token is known here; the others stay on the GPU.
                let token = if made.is_empty() && n == 0 { first as i32 } else { -1 };
                let step = self.step_args(token, self.position + n, 0, 0);
                self.launch(step)?;
            }
            let mut tokens = vec![0u32; batch];
            self.gpu.read(self.state.chosen.at + 4 * self.position as u64, &mut tokens)?;
            for token in tokens {
                self.position += 1;
                made.push(token);
                if stop(token) {
                    return Ok(made);
                }
            }
        }
        Ok(made)
    }
}

/// Raises the limit of shared memory to what the decode kernel takes.
pub(super) fn allow_shared(kernels: &Kernels, layout: &Layout) -> Result<(), Error> {
    use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let limit = layout.total as i32;
    kernels.decode.iter().try_for_each(|f| {
        f.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit)
            .map_err(doing("reserving shared memory"))
    })
}

impl State {
    fn new(gpu: &Gpu, plan: &Plan, weights: &Weights, context: usize, blocks: usize) -> Result<State, Error> {
        let splits = blocks / plan.heads;
        let widest = plan.layers.iter().flat_map(|l| l.linear.iter().map(|l| l.input * l.output)).max();
        let quantised = weights.layers.iter().any(|l| l.mats.iter().any(|m| !m.is_bf16()));
        Ok(State {
            cache: gpu.poisoned(plan.layers.len() * 2 * plan.kv_dim() * context * 2)?,
            rope: gpu.upload(&angles(plan, 0..context, |position| position))?,
            layers: gpu.upload(&weights.layers)?,
            row: gpu.poisoned(plan.hidden * 2)?,
            middle: gpu.poisoned(plan.hidden * 4)?,
            out: gpu.poisoned(plan.hidden * 4)?,
            qkv: gpu.poisoned((plan.q_dim() + 2 * plan.kv_dim()) * 4)?,
            heads: gpu.poisoned(plan.q_dim() * 4)?,
            act: gpu.poisoned(plan.ffn * 4)?,
            logits: gpu.poisoned(plan.vocab * 4)?,
            partial: gpu.poisoned(plan.heads * splits * (plan.head_dim + 2) * 8)?,
            arrivals: gpu.zeros(4)?,
            best: gpu.poisoned(blocks * 8)?,
            barrier: gpu.zeros(4)?,
            state: gpu.zeros(8)?,
            chosen: gpu.zeros(context * 4)?,
            wide: if quantised { Some(gpu.poisoned(widest.unwrap_or(0) * 2)?) } else { None },
        })
    }
}
