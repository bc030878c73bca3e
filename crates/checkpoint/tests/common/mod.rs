//! Writes small GGUF files and model folders, sound or not.
#![expect(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use firstdiff_checkpoint::Checkpoint;
use tempfile::TempDir;

/// A GGUF file being put together.
#[derive(Clone, Default)]
pub struct Gguf {
    metadata: Vec<u8>,
    n_metadata: u64,
    table: Vec<u8>,
    n_tensors: u64,
    data: Vec<u8>,
}

pub const F32: u32 = 0;
pub const Q8_0: u32 = 8;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    /// A key with the bytes of its value.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Gguf {
        self.metadata.extend([string(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self.n_metadata += 1;
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Gguf {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Gguf {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Gguf {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn str(self, key: &str, value: &str) -> Gguf {
        self.raw(key, 8, &string(value))
    }

    fn array(self, key: &str, kind: u32, count: usize, elements: Vec<u8>) -> Gguf {
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[head, elements].concat())
    }

    pub fn strs(self, key: &str, values: &[&str]) -> Gguf {
        self.array(key, 8, values.len(), values.iter().flat_map(|value| string(value)).collect())
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Gguf {
        self.array(key, 5, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Gguf {
        self.array(key, 6, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// A tensor at a given offset, without data.
    pub fn tensor_at(mut self, name: &str, ne: &[u64], kind: u32, offset: u64) -> Gguf {
        self.table.extend(string(name));
        self.table.extend((ne.len() as u32).to_le_bytes());
        self.table.extend(ne.iter().flat_map(|n| n.to_le_bytes()));
        self.table.extend(kind.to_le_bytes());
        self.table.extend(offset.to_le_bytes());
        self.n_tensors += 1;
        self
    }

    /// A tensor with its bytes; `ne` has the contiguous axis first.
    pub fn tensor(mut self, name: &str, ne: &[u64], kind: u32, bytes: &[u8]) -> Gguf {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        self.data.extend(bytes);
        self.tensor_at(name, ne, kind, offset)
    }

    pub fn f32_tensor(self, name: &str, ne: &[u64], values: &[f32]) -> Gguf {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, ne, F32, &bytes)
    }

    pub fn build(&self) -> Vec<u8> {
        self.build_as(3, self.n_tensors, self.n_metadata)
    }

    /// With a version and counts that may be wrong.
    pub fn build_as(&self, version: u32, n_tensors: u64, n_metadata: u64) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(version.to_le_bytes());
        file.extend(n_tensors.to_le_bytes());
        file.extend(n_metadata.to_le_bytes());
        file.extend(&self.metadata);
        file.extend(&self.table);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }

    /// Opened from a temporary file.
    pub fn open(&self) -> Checkpoint {
        self.try_open().unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_open(&self) -> Result<Checkpoint, firstdiff_checkpoint::Error> {
        let folder = TempDir::new().unwrap();
        Checkpoint::open(&write(folder.path(), "model.gguf", &self.build()))
    }
}

/// A sound file of architecture `arch`: 2 heads of 4 channels, 1 key head, one layer of attention.
pub fn tiny(arch: &str) -> Gguf {
    let count = |rows: u64| (0..rows * 8).map(|n| n as f32).collect::<Vec<f32>>();
    sizes(arch)
        .f32_tensor("token_embd.weight", &[8, 3], &count(3))
        .f32_tensor("blk.0.attn_q.weight", &[8, 8], &count(8))
        .f32_tensor("blk.0.attn_q.bias", &[8], &count(1))
        .f32_tensor("blk.0.attn_k.weight", &[8, 4], &count(4))
        .f32_tensor("blk.0.attn_v.weight", &[8, 4], &count(4))
}

/// The metadata of [`tiny`] alone.
pub fn sizes(arch: &str) -> Gguf {
    let key = |name: &str| format!("{arch}.{name}");
    Gguf::default()
        .str("general.architecture", arch)
        .u32(&key("embedding_length"), 8)
        .u32(&key("block_count"), 1)
        .u32(&key("feed_forward_length"), 16)
        .u32(&key("context_length"), 64)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("attention.head_count_kv"), 1)
        .f32(&key("attention.layer_norm_rms_epsilon"), 0.5)
        .f32(&key("rope.freq_base"), 500.0)
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A safetensors file of F32 tensors, each with one axis.
pub fn safetensors(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    safetensors_as("F32", tensors)
}

pub fn safetensors_as(dtype: &str, tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let size = if dtype == "F32" { values.len() } else { data.len() - start };
        header.insert(
            (*name).to_owned(),
            serde_json::json!({"dtype": dtype, "shape": [size], "data_offsets": [start, data.len()]}),
        );
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}
