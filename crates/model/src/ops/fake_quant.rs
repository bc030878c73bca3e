use crate::program::Axis;

/// What a value is brought to and back from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeFormat {
    /// E4M3 in blocks of 64 channels, each with a power of two as its scale; the last `kept` channels of
    /// a head are left alone.
    Fp8 {
        /// Channels left alone.
        kept: usize,
    },
    /// The channels of a head turned by a Hadamard matrix, normalised, then E2M1 in blocks of 32
    /// channels, each with a power of two as its scale. They stay turned: a product of two such is that of
    /// what they were.
    TurnedFp4,
}

/// A value through a short format and back, as DeepSeek's own inference code does to what the model
/// was trained with that way. Deterministic: part of the model, not rounding.
#[derive(Clone, Debug, PartialEq)]
pub struct FakeQuant {
    /// The format.
    pub format: FakeFormat,
    /// Head size.
    pub dim: usize,
}

impl FakeQuant {
    pub(super) fn axes(&self, input: &[Axis]) -> Vec<Axis> {
        input.to_vec()
    }

    pub(super) fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        vec![]
    }
}
