//! A folder with `config.json` and safetensors: one file, or shards listed by an index.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::checkpoint::{Place, map_file};
use crate::quant::{self, Declared};
use crate::{Config, Error, FolderFault, Storage, TensorInfo};

/// The most that is read of a JSON file. Real indexes reach a few megabytes.
const MAX_JSON: u64 = 64 << 20;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened folder.
pub(crate) struct Folder {
    /// Tensors of shards that are not here, with those shards.
    pub(crate) absent: BTreeMap<String, String>,
    pub(crate) config: Config,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) parts: Vec<Mmap>,
}

fn fault(path: &Path, fault: FolderFault) -> Error {
    Error::Folder { path: path.to_path_buf(), fault: Box::new(fault) }
}

/// Opens the model in the folder `path`, or what is there of it.
pub(crate) fn open(path: &Path, in_part: bool) -> Result<Folder, Error> {
    let files = file_names(path)?;
    if !files.iter().any(|file| file == "config.json") {
        let gguf = files.iter().find(|file| file.ends_with(".gguf"));
        let no_config = gguf.map(|file| FolderFault::GgufInside { file: file.clone() });
        return Err(fault(path, no_config.unwrap_or(FolderFault::NoConfig)));
    }
    let config = read_config(&path.join("config.json"))?;
    let shards = shards(path, &files, in_part)?;
    let nested = config.origin("model_type").is_some_and(|origin| origin.contains("text_config"));

    let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
    let mut parts = Vec::with_capacity(shards.names.len());
    for (part, shard) in shards.names.iter().enumerate() {
        let file = path.join(shard);
        let map = map_file(&file)?;
        for tensor in read_shard(&file, &map, part)? {
            if let Some(first) = tensors.get(&tensor.source_name) {
                return Err(fault(
                    path,
                    FolderFault::DuplicateTensor {
                        tensor: tensor.source_name,
                        first: shards.names[first.place.part].clone(),
                        second: shard.clone(),
                    },
                ));
            }
            tensors.insert(tensor.source_name.clone(), tensor);
        }
        parts.push(map);
    }
    for (tensor, shard) in shards.promised {
        if tensors.get(&tensor).is_none_or(|found| shards.names[found.place.part] != shard) {
            return Err(fault(path, FolderFault::MissingTensor { tensor, shard }));
        }
    }
    let declared = Declared::read(path, &config)?;
    let joined = quant::join(tensors, &declared, &shards.missing).map_err(|wrong| fault(path, wrong))?;
    let (mut tensors, mut absent) = (joined.tensors, joined.absent);
    if nested {
        tensors.iter_mut().for_each(|tensor| tensor.name = text_name(&tensor.name));
        absent = absent.into_iter().map(|(name, shard)| (text_name(&name), shard)).collect();
    }
    Ok(Folder { absent, config, tensors, parts })
}

/// The names of the folder's files, sorted.
fn file_names(path: &Path) -> Result<Vec<String>, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// A JSON object in a file; none when there is no file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if size > MAX_JSON {
        return Err(fault(path, FolderFault::TooLarge { size, most: MAX_JSON }));
    }
    let text = fs::read(path).map_err(io)?;
    let json = |message: String| fault(path, FolderFault::Json { message });
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(json("not a JSON object".to_owned())),
        Err(error) => Err(json(error.to_string())),
    }
}

/// Reads `config.json`. The keys of a `text_config` come before those beside it.
fn read_config(path: &Path) -> Result<Config, Error> {
    let object = read_json(path)?.ok_or_else(|| fault(path, FolderFault::NoConfig))?;
    let mut config = Config::new(path);
    for (key, value) in &object {
        if key != "text_config" {
            config.set(key, value.clone(), format!("config.json: {key}"));
        }
    }
    if let Some(Value::Object(text)) = object.get("text_config") {
        for (key, value) in text {
            config.set(key, value.clone(), format!("config.json: text_config.{key}"));
        }
    }
    Ok(config)
}

/// The weights files, and what the index says they hold.
struct Shards {
    names: Vec<String>,
    /// Tensor and shard.
    promised: Vec<(String, String)>,
    /// The same, of shards that are not there.
    missing: BTreeMap<String, String>,
}

impl Shards {
    fn of(names: Vec<String>) -> Shards {
        Shards { names, promised: Vec::new(), missing: BTreeMap::new() }
    }
}

fn shards(path: &Path, files: &[String], in_part: bool) -> Result<Shards, Error> {
    let index = path.join(INDEX);
    // A single file wins over an index beside it, as in transformers.
    if files.iter().any(|file| file == SINGLE) {
        return Ok(Shards::of(vec![SINGLE.to_owned()]));
    }
    if let Some(object) = read_json(&index)? {
        return read_index(&index, &object, files, in_part);
    }
    let found: Vec<&String> = files.iter().filter(|file| file.ends_with(".safetensors")).collect();
    match found.as_slice() {
        [one] => Ok(Shards::of(vec![one.to_string()])),
        [] => {
            let pickle =
                files.iter().find(|file| [".bin", ".pt", ".pth"].iter().any(|end| file.ends_with(end)));
            let none = pickle.map(|file| FolderFault::Pickle { file: file.clone() });
            Err(fault(path, none.unwrap_or(FolderFault::NoWeights)))
        }
        several if in_part => Ok(Shards::of(several.iter().map(|name| name.to_string()).collect())),
        several => Err(fault(path, FolderFault::NoIndex { count: several.len() })),
    }
}

fn read_index(
    index: &Path,
    object: &Map<String, Value>,
    files: &[String],
    in_part: bool,
) -> Result<Shards, Error> {
    let Some(Value::Object(weights)) = object.get("weight_map") else {
        let message = "no object weight_map".to_owned();
        return Err(fault(index, FolderFault::Json { message }));
    };
    let mut shards = Shards::of(Vec::new());
    for (tensor, shard) in weights {
        let Value::String(shard) = shard else {
            let message = format!("weight_map: {tensor} names no file");
            return Err(fault(index, FolderFault::Json { message }));
        };
        if !is_plain_name(shard) {
            return Err(fault(index, FolderFault::ShardName { name: shard.clone() }));
        }
        if in_part && !files.contains(shard) {
            shards.missing.insert(tensor.clone(), shard.clone());
            continue;
        }
        shards.names.push(shard.clone());
        shards.promised.push((tensor.clone(), shard.clone()));
    }
    shards.names.sort();
    shards.names.dedup();
    if let Some(shard) = shards.names.iter().find(|name| !files.contains(name)) {
        return Err(fault(index, FolderFault::MissingShard { shard: shard.clone() }));
    }
    if shards.names.is_empty() {
        if let Some(shard) = shards.missing.into_values().next() {
            return Err(fault(index, FolderFault::MissingShard { shard }));
        }
        return Err(fault(index, FolderFault::NoWeights));
    }
    Ok(shards)
}

/// Whether a name stays in the folder on every system.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "." && name != ".."
}

fn read_shard(path: &Path, map: &[u8], part: usize) -> Result<Vec<TensorInfo>, Error> {
    let header =
        |error: safetensors::SafeTensorError| fault(path, FolderFault::Header { message: error.to_string() });
    let (header_len, metadata) = SafeTensors::read_metadata(map).map_err(header)?;
    // The eight bytes of the header's own length come first.
    let data_start = header_len + 8;
    let mut tensors = Vec::new();
    for (source_name, info) in metadata.tensors() {
        let Some(storage) = storage(info.dtype) else {
            let dtype = format!("{:?}", info.dtype);
            return Err(fault(path, FolderFault::DType { tensor: source_name, dtype }));
        };
        let (start, end) = info.data_offsets;
        tensors.push(TensorInfo {
            name: source_name.clone(),
            source_name,
            shape: info.shape.clone(),
            storage,
            place: Place {
                part,
                bytes: data_start + start..data_start + end,
                permuted_head_dim: None,
                scales: None,
            },
        });
    }
    Ok(tensors)
}

/// The name that a text model's tensor has without the model around it.
fn text_name(name: &str) -> String {
    for (prefix, inner) in
        [("language_model.model.", "model."), ("language_model.", ""), ("model.language_model.", "model.")]
    {
        if let Some(rest) = name.strip_prefix(prefix) {
            return format!("{inner}{rest}");
        }
    }
    name.to_owned()
}

fn storage(dtype: Dtype) -> Option<Storage> {
    Some(match dtype {
        Dtype::F64 => Storage::F64,
        Dtype::F32 => Storage::F32,
        Dtype::F16 => Storage::F16,
        Dtype::BF16 => Storage::BF16,
        Dtype::I64 => Storage::I64,
        Dtype::I32 => Storage::I32,
        Dtype::I16 => Storage::I16,
        Dtype::I8 => Storage::I8,
        Dtype::U64 => Storage::U64,
        Dtype::U32 => Storage::U32,
        Dtype::U16 => Storage::U16,
        Dtype::U8 => Storage::U8,
        Dtype::BOOL => Storage::Bool,
        Dtype::F8_E4M3 => Storage::F8E4M3,
        Dtype::F8_E5M2 => Storage::F8E5M2,
        Dtype::F8_E8M0 => Storage::F8E8M0,
        _ => return None,
    })
}

/// A file of the folder, if it is there.
pub(crate) fn file_in(folder: &Path, name: &str) -> Option<PathBuf> {
    Some(folder.join(name)).filter(|path| path.is_file())
}
