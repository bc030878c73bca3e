//! What ends a generation, and what begins one.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::gguf::Metadata;
use crate::tokenizer::{adds_bos, chat_template, special_token};
use crate::{Config, Tokenizer, folder};

/// Stop tokens and the beginning-of-sequence token, as the model's files declare them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// Every id that any file declares to end a generation, with each place that declared it
    /// ("generation_config.json eos_token_id", "tokenizer.ggml.eot_token_id",
    /// "chat template: <|im_end|>"). Ids outside the vocabulary are kept.
    pub stop_ids: BTreeMap<u32, Vec<String>>,
    /// The beginning-of-sequence token, where one is declared.
    pub bos: Option<u32>,
    /// Whether encoding with special tokens puts `bos` first.
    pub add_bos: bool,
}

/// Tokens that templates of well-known models end a turn with.
const ENDS_OF_TURN: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
];

impl Generation {
    fn stop(&mut self, id: u64, origin: impl Into<String>) {
        if let Ok(id) = u32::try_from(id) {
            self.stop_ids.entry(id).or_default().push(origin.into());
        }
    }

    /// An id, or a list of them.
    fn stop_value(&mut self, value: Option<&Value>, origin: &str) {
        match value {
            Some(Value::Array(ids)) => {
                ids.iter().filter_map(Value::as_u64).for_each(|id| self.stop(id, origin))
            }
            Some(id) => id.as_u64().into_iter().for_each(|id| self.stop(id, origin)),
            None => {}
        }
    }

    /// Ends of turns that the template writes and that are control tokens.
    fn stop_template(&mut self, template: &str, control_token: impl Fn(&str) -> Option<u32>) {
        for token in ENDS_OF_TURN.iter().filter(|token| template.contains(**token)) {
            if let Some(id) = control_token(token) {
                self.stop(u64::from(id), format!("chat template: {token}"));
            }
        }
    }
}

/// What a GGUF file declares.
pub(crate) fn from_gguf(metadata: &Metadata, file: &[u8]) -> Generation {
    let mut this = Generation::default();
    for name in ["eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if let Ok(Some(id)) = metadata.unsigned(&key) {
            this.stop(id, key);
        }
    }
    let template = metadata.string("tokenizer.chat_template").ok().flatten();
    let tokens = metadata.strings(file, "tokenizer.ggml.tokens").ok().flatten();
    let types = metadata.integers(file, "tokenizer.ggml.token_type").ok().flatten();
    if let (Some(template), Some(tokens), Some(types)) = (template, tokens, types) {
        // 3 is a control token; some converters write 4, user-defined, for the same.
        let control: BTreeMap<&str, u32> = (0..)
            .zip(tokens.iter().zip(&types))
            .filter(|(_, (_, kind))| matches!(kind, 3 | 4))
            .map(|(id, (token, _))| (*token, id))
            .collect();
        this.stop_template(template, |token| control.get(token).copied());
    }
    let bos = metadata.unsigned("tokenizer.ggml.bos_token_id").ok().flatten();
    this.bos = bos.and_then(|id| u32::try_from(id).ok());
    this.add_bos = this.bos.is_some() && adds_bos(metadata);
    this
}

/// What a folder's files declare. Without a tokenizer, only what they declare by number is found.
pub(crate) fn from_folder(path: &Path, config: &Config, tokenizer: Option<&Tokenizer>) -> Generation {
    let read = |name: &str| folder::read_json(&path.join(name)).ok().flatten().unwrap_or_default();
    let (generation, settings) = (read("generation_config.json"), read("tokenizer_config.json"));
    let mut this = Generation::default();
    this.stop_value(generation.get("eos_token_id"), "generation_config.json eos_token_id");
    let origin = config.origin("eos_token_id").unwrap_or_default().replacen(": ", " ", 1);
    this.stop_value(config.get("eos_token_id"), &origin);

    let id = |token: &str| tokenizer.and_then(|tokenizer| tokenizer.id(token));
    if let Some(eos) = special_token(&settings, "eos_token").and_then(id) {
        this.stop(u64::from(eos), "tokenizer_config.json eos_token");
    }
    if let Some(template) = chat_template(path, &settings) {
        this.stop_template(&template, |token| {
            id(token).filter(|id| tokenizer.is_some_and(|tokenizer| tokenizer.is_special(*id)))
        });
    }
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    this.bos = special_token(&settings, "bos_token")
        .and_then(id)
        .or_else(|| number(generation.get("bos_token_id")))
        .or_else(|| number(config.get("bos_token_id")));
    let first = tokenizer.and_then(|tokenizer| tokenizer.encode("", true).ok()?.first().copied());
    this.add_bos = first.is_some() && first == this.bos;
    this
}
