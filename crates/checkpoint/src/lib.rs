//! Model files: GGUF, or a folder with `config.json` and safetensors. One spelling for all of them.
//!
//! * **Tensors** carry the names that Hugging Face uses (`model.layers.0.self_attn.q_proj.weight`), the shape
//!   that torch shows, and the value order of Hugging Face: what a converter permuted is permuted back.
//! * **Configuration** carries the keys of `config.json`; every key remembers where it was read.
//! * **Values** are mapped from the file and dequantised on demand, a range of rows at a time.
//!
//! Everything read is hostile input: sizes are checked before anything is allocated, and nothing outside the
//! model's own folder is opened.

mod checkpoint;
mod config;
mod error;
mod fingerprint;
mod folder;
mod generation;
pub mod gguf;
mod quant;
mod residency;
mod storage;
mod tokenizer;
mod values;

pub use checkpoint::{Checkpoint, Format, TensorInfo};
pub use config::Config;
pub use error::{Error, FolderFault, GgufFault, TokenizerFault};
pub use generation::Generation;
pub use quant::Misreading;
pub use storage::Storage;
pub use tokenizer::{Message, Tokenizer};
