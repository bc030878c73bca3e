//! A tokenizer from the files of a model folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Inner, Tokenizer, invalid, tokenizer_error};
use crate::folder::{file_in, read_json};
use crate::{Error, TokenizerFault};

/// The most that is read of `tokenizer.json`; the largest known have some 40 megabytes.
const MAX_TOKENIZER: u64 = 512 << 20;
/// The most that is read of a template.
const MAX_TEMPLATE: u64 = 16 << 20;

/// The tokens that templates can name.
const NAMED: &[&str] =
    &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokenizer of the folder `path`.
pub(crate) fn from_folder(path: &Path) -> Result<Tokenizer, Error> {
    let Some(file) = file_in(path, "tokenizer.json") else {
        return Err(tokenizer_error(path, TokenizerFault::NoFile));
    };
    let text = read_limited(&file, MAX_TOKENIZER)?;
    let mut core =
        tokenizers::Tokenizer::from_bytes(text).map_err(|error| tokenizer_error(&file, invalid(&error)))?;
    // A model's own files may ask for padding or truncation, which no forward pass wants.
    core.with_padding(None);
    core.with_truncation(None).map_err(|error| tokenizer_error(&file, invalid(&error)))?;

    let settings = read_json(&path.join("tokenizer_config.json"))?.unwrap_or_default();
    let named: BTreeMap<String, String> = NAMED
        .iter()
        .filter_map(|&name| Some((name.to_owned(), special_token(&settings, name)?.to_owned())))
        .collect();
    let template = find_template(path, &settings)?;
    let (path, before, after) = (path.to_path_buf(), Vec::new(), Vec::new());
    Ok(Tokenizer { inner: Arc::new(Inner { path, core, before, after, template, named }) })
}

/// A token named by `tokenizer_config.json`: a string, or an object with its content.
pub(crate) fn special_token<'a>(settings: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let value = settings.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The chat template of a folder, if it has one that can be read.
pub(crate) fn chat_template(path: &Path, settings: &Map<String, Value>) -> Option<String> {
    find_template(path, settings).ok().flatten()
}

/// A file of its own comes first, then the one in `tokenizer_config.json`.
fn find_template(path: &Path, settings: &Map<String, Value>) -> Result<Option<String>, Error> {
    if let Some(file) = file_in(path, "chat_template.jinja") {
        let text = read_limited(&file, MAX_TEMPLATE)?;
        return String::from_utf8(text).map(Some).map_err(|error| tokenizer_error(&file, invalid(&error)));
    }
    let separate = read_json(&path.join("chat_template.json"))?.unwrap_or_default();
    let template = separate.get("chat_template").or_else(|| settings.get("chat_template"));
    Ok(match template {
        Some(Value::String(template)) => Some(template.clone()),
        // A list of named templates, of which "default" is for plain chat.
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    })
}

fn read_limited(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let size = fs::metadata(path).map_err(io)?.len();
    if size > most {
        let message = format!("{size} bytes, and at most {most} are read; is this the right file?");
        return Err(tokenizer_error(path, TokenizerFault::Invalid { message }));
    }
    fs::read(path).map_err(io)
}
