//! How an engine rounds.

use firstdiff_checkpoint::Storage;
use firstdiff_tensor::Float;

/// What a matrix product does to its input before multiplying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulInputs {
    /// Nothing: the input is used as stored.
    AsStored,
    /// ggml: the input is brought to a format chosen by the weight's: blocks of 8-bit integers for
    /// quantised weights, the weight's own format for f16 and bf16.
    Ggml,
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
    /// Running sums are held in this.
    pub accumulate: Float,
    /// Cached keys and values are stored in this.
    pub kv_cache: Float,
    /// Treatment of inputs to matrix products with weights.
    pub matmul_inputs: MatmulInputs,
    /// How attention accumulates.
    pub attention: Attention,
}

impl Arithmetic {
    /// Everything in one format, sums in f32.
    pub fn uniform(format: Float) -> Arithmetic {
        let accumulate = if format == Float::F64 { Float::F64 } else { Float::F32 };
        Arithmetic {
            name: format.name().into(),
            weights: format,
            store: format,
            accumulate,
            kv_cache: format,
            matmul_inputs: MatmulInputs::AsStored,
            attention: Attention::Plain,
        }
    }

    /// ggml on CPUs: f32 between operations, 8-bit blocks into matrix products, f16 cache.
    pub fn ggml() -> Arithmetic {
        Arithmetic {
            name: "ggml-q8".into(),
            kv_cache: Float::F16,
            matmul_inputs: MatmulInputs::Ggml,
            attention: Attention::OnlineF16,
            ..Arithmetic::uniform(Float::F32)
        }
    }

    /// The profile with this name, as `--arithmetic` takes it.
    pub fn from_name(name: &str) -> Option<Arithmetic> {
        match name {
            "ggml-q8" => Some(Arithmetic::ggml()),
            _ => Float::from_name(name).map(Arithmetic::uniform),
        }
    }

    /// Names that [`Arithmetic::from_name`] takes.
    pub const NAMES: [&'static str; 5] = ["f64", "f32", "bf16", "f16", "ggml-q8"];

    /// The blocks into which a product with a weight of this storage rounds its input.
    pub(crate) fn input_rounding(&self, weight: Storage) -> InputRounding {
        if self.matmul_inputs == MatmulInputs::AsStored {
            return InputRounding::None;
        }
        match weight {
            Storage::F16 => InputRounding::Float(Float::F16),
            Storage::BF16 => InputRounding::Float(Float::BF16),
            s if s.is_quantised() && s.block_len() == 256 => {
                InputRounding::Blocks { len: 256, scale: Float::F32 }
            }
            s if s.is_quantised() => InputRounding::Blocks { len: 32, scale: Float::F16 },
            _ => InputRounding::None,
        }
    }
}

/// What is done to the input of one matrix product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum InputRounding {
    None,
    Float(Float),
    /// Blocks of 8-bit integers, `x = d q` with `d = max|x| / 127`, `d` held in `scale`.
    Blocks {
        len: usize,
        scale: Float,
    },
}
