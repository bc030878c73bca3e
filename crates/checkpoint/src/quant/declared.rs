//! What a configuration says of the quantisation of its weights.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Config, Error, FolderFault, folder};

/// How the scales of FP8 weights may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One scale for a matrix.
    Whole,
    /// One for each row.
    Rows,
    /// One for a block of so many rows and columns.
    Blocks(usize, usize),
}

/// What is declared, as far as names and element types do not say it themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    /// Whether the model is said to be quantised at all.
    pub(crate) quantised: bool,
    /// The layouts of scales of FP8 weights, the likeliest first.
    pub(crate) layouts: Vec<Layout>,
}

/// The methods that are read.
const METHODS: &str = "fp8, mxfp4, compressed-tensors (float-quantized, naive-quantized of floats, \
                       nvfp4-pack-quantized, mxfp4-pack-quantized) and modelopt (NVFP4, FP8)";

/// Where modelopt writes what other packages write into `config.json`.
const MODELOPT_FILE: &str = "hf_quant_config.json";

impl Declared {
    /// Reads what `config` says, and modelopt's own file beside it.
    pub(crate) fn read(folder: &Path, config: &Config) -> Result<Declared, Error> {
        let object = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object.clone())),
            Some(other) => {
                let message = format!("{key} is {other}, not an object");
                Err(Error::Folder {
                    path: config.file().to_path_buf(),
                    fault: Box::new(FolderFault::Json { message }),
                })
            }
        };
        let declared = match object("quantization_config")? {
            Some(settings) => Some(settings),
            None => object("compression_config")?,
        };
        let (settings, file) = match declared {
            Some(settings) => (settings, config.file().to_path_buf()),
            None => {
                let file = folder.join(MODELOPT_FILE);
                match folder::read_json(&file)? {
                    Some(mut settings) => {
                        settings.insert("quant_method".into(), "modelopt".into());
                        (settings, file)
                    }
                    // Without a word on it, scales for a whole matrix or for its rows can still be told.
                    None => {
                        return Ok(Declared { quantised: false, layouts: vec![Layout::Whole, Layout::Rows] });
                    }
                }
            }
        };
        let layouts =
            layouts(&settings).map_err(|fault| Error::Folder { path: file, fault: Box::new(fault) })?;
        Ok(Declared { quantised: true, layouts })
    }
}

fn refused(what: &'static str, found: &Value) -> FolderFault {
    let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
    FolderFault::Quantisation { what, found, supported: METHODS }
}

fn layouts(settings: &Map<String, Value>) -> Result<Vec<Layout>, FolderFault> {
    let method = settings.get("quant_method").unwrap_or(&Value::Null);
    match method.as_str() {
        Some("fp8") => fp8(settings),
        Some("mxfp4") => Ok(vec![]),
        Some("compressed-tensors") => compressed_tensors(settings),
        Some("modelopt" | "modelopt_fp4" | "modelopt_mixed") => modelopt(settings),
        // Early files of compressed-tensors name the format alone.
        None if settings.get("format").is_some_and(Value::is_string) => compressed_tensors(settings),
        _ => Err(refused("quant_method", method)),
    }
}

/// transformers and DeepSeek: blocks of a given size, or one scale for the whole where none is given.
fn fp8(settings: &Map<String, Value>) -> Result<Vec<Layout>, FolderFault> {
    if let Some(fmt) = settings.get("fmt").filter(|f| !f.is_null() && f.as_str() != Some("e4m3")) {
        return Err(refused("fmt", fmt));
    }
    Ok(match settings.get("weight_block_size") {
        None | Some(Value::Null) => vec![Layout::Whole, Layout::Rows],
        Some(size) => vec![blocks(size).ok_or_else(|| refused("weight_block_size", size))?],
    })
}

fn blocks(size: &Value) -> Option<Layout> {
    let sizes: Vec<usize> = size.as_array()?.iter().map(positive).collect::<Option<_>>()?;
    let [rows, columns] = sizes[..] else { return None };
    Some(Layout::Blocks(rows, columns))
}

fn positive(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
}

/// compressed-tensors: groups of modules, each with a strategy.
fn compressed_tensors(settings: &Map<String, Value>) -> Result<Vec<Layout>, FolderFault> {
    let known = |format: &Value| {
        let known = [
            "dense",
            "mixed-precision",
            "float-quantized",
            "naive-quantized",
            "nvfp4-pack-quantized",
            "mxfp4-pack-quantized",
        ];
        if format.is_null() || format.as_str().is_some_and(|f| known.contains(&f)) {
            Ok(())
        } else {
            Err(refused("format", format))
        }
    };
    known(settings.get("format").unwrap_or(&Value::Null))?;
    let mut layouts = Vec::new();
    let groups = settings.get("config_groups").and_then(Value::as_object);
    for group in groups.into_iter().flat_map(Map::values) {
        known(group.get("format").unwrap_or(&Value::Null))?;
        let Some(weights) = group.get("weights").filter(|w| !w.is_null()) else { continue };
        let kind = weights.get("type").unwrap_or(&Value::Null);
        if !kind.is_null() && kind.as_str() != Some("float") {
            return Err(refused("type of weights", kind));
        }
        if weights.get("num_bits").and_then(Value::as_u64) == Some(4) {
            // Their block sizes are part of the format.
            continue;
        }
        let strategy = weights.get("strategy").unwrap_or(&Value::Null);
        let group_size = || weights.get("group_size").and_then(positive);
        let layout = match strategy.as_str() {
            Some("tensor") => Some(Layout::Whole),
            Some("channel") => Some(Layout::Rows),
            Some("block") => weights.get("block_structure").and_then(blocks),
            Some("group") => group_size().map(|columns| Layout::Blocks(1, columns)),
            None => Some(Layout::Whole),
            _ => None,
        };
        let layout = layout.ok_or_else(|| refused("strategy of weights", strategy))?;
        if !layouts.contains(&layout) {
            layouts.push(layout);
        }
    }
    Ok(layouts)
}

/// modelopt: an algorithm for all, or one for each layer.
fn modelopt(settings: &Map<String, Value>) -> Result<Vec<Layout>, FolderFault> {
    let inner = settings.get("quantization").and_then(Value::as_object).unwrap_or(settings);
    let known = |algorithm: &Value| {
        let known = ["NVFP4", "W4A16_NVFP4", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION"];
        if algorithm.is_null() || algorithm.as_str().is_some_and(|a| known.contains(&a)) {
            Ok(())
        } else {
            Err(refused("quant_algo", algorithm))
        }
    };
    known(inner.get("quant_algo").unwrap_or(&Value::Null))?;
    let layers = inner.get("quantized_layers").and_then(Value::as_object);
    for layer in layers.into_iter().flat_map(Map::values) {
        known(layer.get("quant_algo").unwrap_or(&Value::Null))?;
    }
    Ok(vec![Layout::Whole, Layout::Rows])
}
