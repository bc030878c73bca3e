//! `trace.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Error;

/// What `format` says in a trace of the version written here.
pub const FORMAT: &str = "firstdiff.trace/1";
const FAMILY: &str = "firstdiff.trace/";
const VERSION: u64 = 1;
/// A manifest is a page of text; anything near this size is not one.
const MAX_BYTES: u64 = 16 << 20;

/// The contents of `trace.json`. Keys not listed here are kept in `other`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// The program that recorded the trace.
    pub producer: Producer,
    /// The model, as the engine knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSpec>,
    /// The arithmetic the engine says it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<ArithmeticSpec>,
    /// The prompt text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Sampling parameters: `temperature`, `do_sample`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Map<String, Value>>,
    /// Ids at which the engine stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_ids: Option<Vec<i64>>,
    /// Library versions, device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Map<String, Value>>,
    /// Whether the recorder was closed normally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A program and its version.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Producer {
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

/// The model a trace was recorded from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Its name or path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The family: `llama`, `qwen2`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// The checkpoint's fingerprint, as `firstdiff inspect` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The formats an engine holds its values in; docs/TRACE.md lists the spellings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ArithmeticSpec {
    /// Format of the weights (`f32`, `bf16`, `f16`; `gguf`: as the file has them).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Format in which an operation's result is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<String>,
    /// Format of running sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<String>,
    /// Format of cached keys and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<String>,
    /// What a matrix product does to its input first (`ggml-q8`: 8-bit blocks chosen by the weight's format).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matmul_inputs: Option<String>,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Manifest {
    /// A manifest with the required keys.
    pub fn new(producer: Producer) -> Manifest {
        Manifest {
            format: FORMAT.to_string(),
            producer,
            model: None,
            arithmetic: None,
            prompt: None,
            sampling: None,
            stop_ids: None,
            environment: None,
            complete: None,
            other: Map::new(),
        }
    }

    /// Reads `trace.json`, refusing other formats and newer versions.
    pub(crate) fn read(path: &Path) -> Result<Manifest, Error> {
        let wrong = |reason: String| Error::Manifest { path: path.to_path_buf(), reason };
        let size = std::fs::metadata(path).map_err(Error::io(path, "read the manifest"))?.len();
        if size > MAX_BYTES {
            return Err(wrong(format!("is {size} bytes long, more than any manifest")));
        }
        let text = std::fs::read(path).map_err(Error::io(path, "read the manifest"))?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("is not valid JSON: {e}")))?;
        let format = value.get("format").and_then(Value::as_str).unwrap_or_default();
        let version = format.strip_prefix(FAMILY).and_then(|v| v.parse::<u64>().ok());
        match version {
            Some(VERSION) => {}
            Some(found) if found > VERSION => {
                return Err(Error::TooNew { path: path.to_path_buf(), found, supported: VERSION });
            }
            _ => return Err(wrong(format!("key 'format' is '{format}' where '{FORMAT}' is expected"))),
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|e| wrong(format!("does not follow the format: {e}")))?;
        // Whoever uses them parses them again; what is wrong is said at once.
        manifest.layout().map_err(&wrong)?;
        if let Some(arithmetic) = &manifest.arithmetic {
            arithmetic.additions().map_err(&wrong)?;
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Manifest, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        std::fs::write(&path, text).unwrap();
        Manifest::read(&path)
    }

    #[test]
    fn unknown_keys_are_kept() {
        let m =
            read(r#"{"format":"firstdiff.trace/1","producer":{"name":"x","version":"1"},"colour":"red"}"#)
                .unwrap();
        assert_eq!(m.other["colour"], "red");
    }

    #[test]
    fn a_newer_version_is_refused_with_both_numbers() {
        let e = read(r#"{"format":"firstdiff.trace/7","producer":{"name":"x"}}"#).unwrap_err().to_string();
        assert!(e.contains("version 7") && e.contains("version 1"), "{e}");
    }

    #[test]
    fn a_key_that_holds_what_it_cannot_is_named() {
        let about =
            |more: &str| format!(r#"{{"format":"firstdiff.trace/1","producer":{{"name":"x"}},{more}}}"#);
        for (more, key) in [
            (r#""rope_order":"pairs""#, "rope_order"),
            (r#""arithmetic":{"tensor_parallel":0}"#, "arithmetic.tensor_parallel"),
            (r#""arithmetic":{"kv_cache":"q9"}"#, "arithmetic.kv_cache"),
        ] {
            let error = read(&about(more)).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("trace.json"), "{error}");
        }
        assert!(read(&about(r#""rope_order":"neighbours","rank":{"tp":[0,2]}"#)).is_ok());
    }

    #[test]
    fn other_json_is_refused() {
        for text in ["{}", "[]", "null", "{\"format\":3}", "{\"format\":\"firstdiff.check/1\"}", "{"] {
            assert!(matches!(read(text), Err(Error::Manifest { .. })), "{text}");
        }
    }
}
