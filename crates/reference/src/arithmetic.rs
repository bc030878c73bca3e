//! How an engine rounds.

use std::borrow::Cow;

use firstdiff_checkpoint::Storage;
use firstdiff_model::{Op, Simulation};
use firstdiff_tensor::Float;
use firstdiff_trace::tap;

use crate::cache::CacheFormat;

/// What a matrix product does to its inputs before multiplying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulInputs {
    /// Nothing: they are used as stored.
    AsStored,
    /// ggml on CPUs: the input is brought to a format chosen by the weight's: blocks of 8-bit integers
    /// for quantised weights, the weight's own format for f16 and bf16.
    Ggml,
    /// Both factors are brought to a shorter float format, in attention too (tf32 on tensor cores).
    Short(Float),
    /// The input is divided by a scale, rounded to an 8-bit float and multiplied back: one scale for
    /// each block of `block` channels, or for all channels of a token. Weights are used as stored.
    Scaled {
        /// The 8-bit format.
        format: Float,
        /// Channels that share a scale; `None`: all of a token.
        block: Option<usize>,
    },
}

/// How attention accumulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Scores, probabilities and sums over values are separate operations.
    Plain,
    /// Online softmax whose sum over values is held in f16, as ggml's flash attention on CPUs does
    /// with an f16 cache.
    OnlineF16,
}

/// The formats an engine holds and computes values in: an arithmetic profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// Name in results.
    pub name: String,
    /// Weights are rounded to this when loaded (a deterministic part of the model under test).
    pub weights: Float,
    /// Results of operations are stored in this.
    pub store: Float,
    /// The residual stream goes on in this, even where it was stored in `store`: fused kernels add
    /// and normalise before they round.
    pub residual: Float,
    /// Running sums are held in this.
    pub accumulate: Float,
    /// Running sums of products with a weight, where they are held in another format than `accumulate`.
    pub product_sums: Option<Float>,
    /// Matrix products are cut into so many partial sums, each stored in `store` before they are added
    /// up there (split-K); 1: not cut, or added up in `accumulate`.
    pub split_sums: usize,
    /// Row-parallel products (`attn_out`, `mlp_out` and what experts give) are partial sums of so many ranks, each
    /// stored in `store` before they are added up there; 1: of one.
    pub tensor_parallel: usize,
    /// Cached keys are stored in this.
    pub k_cache: CacheFormat,
    /// Cached values are stored in this.
    pub v_cache: CacheFormat,
    /// Results whose last rounding is to another format than `store`, by tap pattern (`layers.*.q_rope`).
    pub stored: Vec<(String, Float)>,
    /// Results that are cut off instead of rounded when they are stored, by tap pattern.
    pub truncated: Vec<String>,
    /// Recorded tensors are roundings of what the next operation read (fusing compilers).
    pub reads_unrounded: bool,
    /// Norms store their root, or its reciprocal, in `store` before they divide by it.
    pub norm_root_stored: bool,
    /// The format of the embeddings' factor; `None`: the longer of `weights` and `store`.
    pub embed_factor: Option<Float>,
    /// Treatment of the inputs of matrix products.
    pub matmul_inputs: MatmulInputs,
    /// How attention accumulates.
    pub attention: Attention,
    /// What the engine simulates besides; the model is to be one that does too.
    pub simulation: Option<Simulation>,
}

impl Arithmetic {
    /// Everything in one format, sums in f32.
    pub fn uniform(format: Float) -> Arithmetic {
        let accumulate = if format == Float::F64 { Float::F64 } else { Float::F32 };
        Arithmetic {
            name: format.name().into(),
            weights: format,
            store: format,
            residual: format,
            accumulate,
            product_sums: None,
            split_sums: 1,
            tensor_parallel: 1,
            k_cache: CacheFormat::Float(format),
            v_cache: CacheFormat::Float(format),
            stored: vec![],
            truncated: vec![],
            reads_unrounded: false,
            norm_root_stored: false,
            embed_factor: None,
            matmul_inputs: MatmulInputs::AsStored,
            attention: Attention::Plain,
            simulation: None,
        }
    }

    /// ggml on CPUs: f32 between operations, 8-bit blocks into matrix products, f16 cache.
    pub fn ggml() -> Arithmetic {
        Arithmetic {
            name: "ggml-q8".into(),
            matmul_inputs: MatmulInputs::Ggml,
            attention: Attention::OnlineF16,
            ..Arithmetic::uniform(Float::F32).with_cache(CacheFormat::Float(Float::F16))
        }
    }

    /// f32 whose matrix products read tf32.
    pub fn tf32() -> Arithmetic {
        Arithmetic {
            name: "tf32".into(),
            matmul_inputs: MatmulInputs::Short(Float::TF32),
            ..Arithmetic::uniform(Float::F32)
        }
    }

    /// DeepSeek's own inference code: bf16, inputs of products through FP8 by blocks of 128 channels, and what
    /// [`Simulation::DeepSeek`] does to keys, entries and the indexer.
    pub fn deepseek() -> Arithmetic {
        Arithmetic::uniform(Float::BF16).with_simulation(Simulation::DeepSeek)
    }

    /// `self` with a simulation.
    pub fn with_simulation(self, simulation: Simulation) -> Arithmetic {
        let matmul_inputs = MatmulInputs::Scaled { format: Float::E4M3, block: Some(128) };
        let name = if self.store == Float::BF16 {
            "deepseek-sim".into()
        } else {
            format!("{}+deepseek-sim", self.name)
        };
        Arithmetic { name, matmul_inputs, simulation: Some(simulation), ..self }
    }

    /// `self` with the residual stream in f32 (fused additions and norms).
    pub fn with_fused_residual(self) -> Arithmetic {
        Arithmetic { name: format!("{}+residual-f32", self.name), residual: Float::F32, ..self }
    }

    /// `self` with products summed in `parts` parts that are stored in between (split-K).
    pub fn with_split_sums(self, parts: usize) -> Arithmetic {
        Arithmetic { name: format!("{}+split-{parts}", self.name), split_sums: parts, ..self }
    }

    /// `self` with row-parallel products added up over `ranks` ranks.
    pub fn with_tensor_parallel(self, ranks: usize) -> Arithmetic {
        Arithmetic { name: format!("{}+tp-{ranks}", self.name), tensor_parallel: ranks, ..self }
    }

    /// `self` with keys and values cached in one format.
    pub fn with_cache(self, format: CacheFormat) -> Arithmetic {
        Arithmetic { k_cache: format, v_cache: format, ..self }
    }

    /// The format of a cache, by its operation.
    pub fn cache_of(&self, op: &Op) -> CacheFormat {
        if op.tap.ends_with("v_cache") { self.v_cache } else { self.k_cache }
    }

    /// The format of the last rounding of an operation's result.
    pub fn stored_in(&self, op: &Op) -> Float {
        match self.stored.iter().find(|(glob, _)| is_of(op, glob)) {
            Some(&(_, format)) => format,
            None if op.kind.wide() => self.accumulate,
            None => self.store,
        }
    }

    /// Whether an operation's result is cut off when it is stored.
    pub(crate) fn truncates(&self, op: &Op) -> bool {
        self.truncated.iter().any(|glob| is_of(op, glob))
    }

    /// Whether an operation is computed in a shorter format than the others: then it reads what it stores.
    pub(crate) fn is_shorter(&self, op: &Op) -> bool {
        self.stored_in(op).significand_bits() < self.store.significand_bits()
    }

    /// The arithmetic inside one operation.
    pub(crate) fn within(&self, op: &Op) -> Cow<'_, Arithmetic> {
        if op.wide {
            return Cow::Owned(self.widened());
        }
        if self.is_shorter(op) {
            return Cow::Owned(Arithmetic { store: self.stored_in(op), ..self.clone() });
        }
        if self.tensor_parallel > 1 && is_row_parallel(op) {
            let split_sums = self.split_sums.max(self.tensor_parallel);
            return Cow::Owned(Arithmetic { split_sums, ..self.clone() });
        }
        Cow::Borrowed(self)
    }

    /// The format of running sums of products with a weight.
    pub(crate) fn sums(&self) -> Float {
        self.product_sums.unwrap_or(self.accumulate)
    }

    /// The format of the embeddings' factor.
    pub fn factor_format(&self) -> Float {
        let longer = |a: Float, b: Float| if a.significand_bits() >= b.significand_bits() { a } else { b };
        self.embed_factor.unwrap_or_else(|| longer(self.weights, self.store))
    }

    /// `self` for an operation that is computed and held in f32 at least: inner values, inputs and result.
    pub(crate) fn widened(&self) -> Arithmetic {
        let store = if self.store == Float::F64 { Float::F64 } else { Float::F32 };
        let matmul_inputs = match self.matmul_inputs {
            MatmulInputs::Short(format) => MatmulInputs::Short(format),
            _ => MatmulInputs::AsStored,
        };
        Arithmetic {
            store,
            residual: store,
            split_sums: 1,
            product_sums: None,
            matmul_inputs,
            ..self.clone()
        }
    }

    /// The profile with this name, as `--arithmetic` takes it.
    pub fn from_name(name: &str) -> Option<Arithmetic> {
        match name {
            "ggml-q8" => Some(Arithmetic::ggml()),
            "tf32" => Some(Arithmetic::tf32()),
            "deepseek-sim" => Some(Arithmetic::deepseek()),
            _ => Float::from_name(name)
                .filter(|f| Arithmetic::ACTIVATIONS.contains(f))
                .map(Arithmetic::uniform),
        }
    }

    /// Formats in which results of operations may be stored.
    pub const ACTIVATIONS: [Float; 4] = [Float::F64, Float::F32, Float::BF16, Float::F16];

    /// Names that [`Arithmetic::from_name`] takes.
    pub const NAMES: [&'static str; 7] = ["f64", "f32", "tf32", "bf16", "f16", "ggml-q8", "deepseek-sim"];

    /// What is done to the input of a product with a weight of this storage.
    pub(crate) fn input_rounding(&self, weight: Storage) -> InputRounding {
        match self.matmul_inputs {
            MatmulInputs::AsStored => InputRounding::None,
            MatmulInputs::Short(format) => InputRounding::Float(format),
            MatmulInputs::Scaled { format, block } => {
                InputRounding::ScaledFloat { len: block.unwrap_or(usize::MAX), format }
            }
            MatmulInputs::Ggml => match weight {
                Storage::F16 => InputRounding::Float(Float::F16),
                Storage::BF16 => InputRounding::Float(Float::BF16),
                s if s.is_quantised() && s.block_len() == 256 => {
                    InputRounding::Blocks { len: 256, scale: Float::F32 }
                }
                s if s.is_quantised() => InputRounding::Blocks { len: 32, scale: Float::F16 },
                _ => InputRounding::None,
            },
        }
    }

    /// What attention does to queries before it multiplies them with keys. Some engines scale queries
    /// first: that rounds them once more, unless the scale is a power of two.
    pub(crate) fn query_rounding(&self, scale: f64) -> InputRounding {
        match self.attention_rounding(self.k_cache) {
            InputRounding::None if scale.log2().fract() != 0.0 => InputRounding::Anywhere(self.store),
            rounding => rounding,
        }
    }

    /// What attention does to probabilities before it multiplies them with values.
    pub(crate) fn probability_rounding(&self) -> InputRounding {
        self.attention_rounding(self.v_cache)
    }

    /// What attention does to the factor that a cache is multiplied with.
    fn attention_rounding(&self, cache: CacheFormat) -> InputRounding {
        match self.matmul_inputs {
            // ggml brings the other factor to the cache's format before multiplying.
            MatmulInputs::Ggml => match cache {
                CacheFormat::Float(format) => InputRounding::Float(format),
                _ => InputRounding::Blocks { len: 32, scale: Float::F16 },
            },
            MatmulInputs::Short(format) => InputRounding::Float(format),
            MatmulInputs::AsStored | MatmulInputs::Scaled { .. } => InputRounding::None,
        }
    }

    /// The format in which attention adds up values, each times its weight.
    pub(crate) fn attention_sums(&self) -> Float {
        match self.attention {
            Attention::Plain => self.accumulate,
            Attention::OnlineF16 => Float::F16,
        }
    }

    /// ggml on CPUs looks the tanh-gelu up in a table of f16 values, by an f16 argument.
    pub(crate) fn gelu_table(&self) -> Option<Float> {
        (self.matmul_inputs == MatmulInputs::Ggml).then_some(Float::F16)
    }

    /// The format to which the second factor of a product is brought too.
    pub(crate) fn second_factor(&self) -> Option<Float> {
        match self.matmul_inputs {
            MatmulInputs::Short(format) => Some(format),
            _ => None,
        }
    }
}

/// Whether a glob over taps or their patterns is of this operation.
fn is_of(op: &Op, glob: &str) -> bool {
    tap::matches(glob, &op.tap) || tap::matches(glob, &tap::pattern(&op.tap))
}

/// Whether tensor parallelism adds up the operation's result over ranks.
pub fn is_row_parallel(op: &Op) -> bool {
    matches!(tap::split(&op.tap).1, "attn_out" | "mlp_out" | "experts_out" | "shared_out")
}

/// What is done to the input of one matrix product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum InputRounding {
    None,
    Float(Float),
    /// Rounded after a multiplication: where a value falls between two others is not known.
    Anywhere(Float),
    /// Blocks of 8-bit integers, `x = d q` with `d = max|x| / 127`, `d` held in `scale`.
    Blocks {
        len: usize,
        scale: Float,
    },
    /// Blocks of 8-bit floats, `x = d q` with `d = max|x|` over the largest value of the format.
    ScaledFloat {
        len: usize,
        format: Float,
    },
}
