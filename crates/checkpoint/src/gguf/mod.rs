//! The GGUF container, its block formats, and what llama.cpp's converter did to names and values.

mod config;
mod cursor;
pub mod dequant;
mod header;
mod metadata;
mod names;
pub(crate) mod permute;
mod types;

pub use header::{Entry, Header};
pub use metadata::{Kind, Metadata, Value};

use std::path::Path;

use crate::checkpoint::Place;
use crate::{Config, GgufFault, TensorInfo};

/// The bytes that a GGUF file begins with.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// An opened file, apart from its bytes.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) metadata: Metadata,
    pub(crate) config: Config,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Reads the file at `path`, whose bytes are `file`.
pub(crate) fn open(path: &Path, file: &[u8]) -> Result<Gguf, GgufFault> {
    let header = Header::parse(file)?;
    let architecture = header
        .metadata
        .string("general.architecture")?
        .ok_or_else(|| GgufFault::MissingKey { key: "general.architecture".to_owned() })?
        .to_owned();
    let config = config::translate(path, file, &header, &architecture)?;
    let Header { metadata, tensors, .. } = header;
    let tensors = tensors
        .into_iter()
        .map(|entry| {
            let head_dim = permuted_head_dim(&architecture, &config, &entry)?;
            Ok(TensorInfo {
                name: names::canonical(&architecture, &entry.name),
                source_name: entry.name,
                shape: entry.shape,
                storage: entry.storage,
                place: Place { part: 0, bytes: entry.bytes, permuted_head_dim: head_dim, scales: None },
            })
        })
        .collect::<Result<Vec<_>, GgufFault>>()?;
    Ok(Gguf { metadata, config, tensors })
}

/// Rows per head of a tensor whose rows the converter permuted.
fn permuted_head_dim(architecture: &str, config: &Config, entry: &Entry) -> Result<Option<usize>, GgufFault> {
    if architecture != "llama" {
        return Ok(None);
    }
    let Some(is_key) = permute::is_key_projection(&entry.name) else { return Ok(None) };
    let key = if is_key { "num_key_value_heads" } else { "num_attention_heads" };
    let heads = config.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let rows = entry.shape.first().copied().unwrap_or(0);
    let head_dim = usize::try_from(heads).ok().filter(|&heads| heads > 0 && rows.is_multiple_of(heads));
    match head_dim.map(|heads| rows / heads) {
        Some(head_dim) if head_dim >= 2 && head_dim.is_multiple_of(2) => Ok(Some(head_dim)),
        _ => Err(GgufFault::Heads { tensor: entry.name.clone(), rows, heads }),
    }
}
