//! What ends a generation, and what begins one.

use std::collections::BTreeMap;

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
