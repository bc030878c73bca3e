//! An opened model.

use std::ops::Range;
use std::path::Path;

use crate::{Config, Error, Generation, Storage, Tokenizer};

/// An opened model: a GGUF file, or a folder with `config.json` and safetensors.
#[derive(Debug)]
pub struct Checkpoint {}

/// The kind of file a model was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One GGUF file.
    Gguf,
    /// A folder with `config.json` and safetensors.
    SafeTensors,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The name that Hugging Face uses; the file's own name where there is no such.
    pub name: String,
    /// The name in the file.
    pub source_name: String,
    /// The shape as torch shows it: `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub storage: Storage,
}

impl TensorInfo {
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of one row: the last axis of a tensor with two axes or more, else 1.
    pub fn row_len(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape[self.shape.len() - 1] }
    }

    /// Rows in all: a one-dimensional tensor of n elements has n rows of 1, a scalar one row of 1, and
    /// a tensor with three axes the product of the first two.
    pub fn rows(&self) -> usize {
        if self.shape.len() < 2 { self.len() } else { self.shape[..self.shape.len() - 1].iter().product() }
    }
}

impl Checkpoint {
    /// Opens the model at `path`.
    ///
    /// # Errors
    /// When there is no model, or it is malformed or unsupported; the error says what to do.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let _ = path;
        todo!()
    }

    /// The path the model was opened by.
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// The kind of file.
    pub fn format(&self) -> Format {
        todo!()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        todo!()
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        [].iter()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let _ = name;
        todo!()
    }

    /// Writes the rows `rows` of a tensor, dequantised, to `out`, which holds `rows.len() * row_len` values.
    ///
    /// # Errors
    /// When the rows or the length of `out` do not fit the tensor.
    pub fn read_rows(&self, t: &TensorInfo, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let _ = (t, rows, out);
        todo!()
    }

    /// The whole tensor, dequantised.
    ///
    /// # Errors
    /// When the tensor is not one of this checkpoint.
    pub fn read(&self, t: &TensorInfo) -> Result<Vec<f32>, Error> {
        let _ = t;
        todo!()
    }

    /// The tensor's values in the mapped file itself, when they are stored as aligned little-endian
    /// binary32 in the order that [`Checkpoint::read`] gives.
    pub fn mapped_f32(&self, t: &TensorInfo) -> Option<&[f32]> {
        let _ = t;
        todo!()
    }

    /// The tokenizer; built on the first call.
    ///
    /// # Errors
    /// When the model has none, or it cannot be used.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        todo!()
    }

    /// Stop tokens and the beginning-of-sequence token.
    pub fn generation(&self) -> Generation {
        todo!()
    }

    /// A cheap, stable identity of the weights.
    pub fn fingerprint(&self) -> String {
        todo!()
    }
}
