//! The model's configuration, in the keys of `config.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;

/// Configuration with the keys of `config.json`, whatever file it was read from.
///
/// A GGUF file's metadata are translated to the same keys. Each key remembers where it was read, so that a
/// message can name the line to look at.
#[derive(Clone, Debug)]
pub struct Config {
    file: PathBuf,
    entries: BTreeMap<String, (Value, String)>,
}

impl Config {
    /// An empty configuration that messages will say was read from `file`.
    pub fn new(file: &Path) -> Config {
        Config { file: file.to_path_buf(), entries: BTreeMap::new() }
    }

    /// Sets `key`, read at `origin` ("config.json: rope_theta", "qwen2.rope.freq_base").
    pub fn set(&mut self, key: &str, value: impl Into<Value>, origin: impl Into<String>) {
        self.entries.insert(key.to_owned(), (value.into(), origin.into()));
    }

    /// The value of `key`. A JSON `null` is a value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Where `key` was read.
    pub fn origin(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(|(_, origin)| origin.as_str())
    }

    /// The file that the configuration was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The model family's name, as in `config.json`: `llama`, `qwen2`, `qwen3_moe`.
    ///
    /// # Errors
    /// When the configuration has none.
    pub fn model_type(&self) -> Result<&str, Error> {
        self.get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::NoModelType { path: self.file.clone() })
    }

    /// Every key with its value and its origin, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value, &str)> {
        self.entries.iter().map(|(key, (value, origin))| (key.as_str(), value, origin.as_str()))
    }
}
