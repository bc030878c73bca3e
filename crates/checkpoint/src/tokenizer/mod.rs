//! Text to token ids and back, and the chat template.

mod bpe;
mod chat;
mod gguf;
mod hf;
mod pre;
mod spm;

pub(crate) use gguf::{adds_bos, from_gguf};
pub(crate) use hf::{chat_template, from_folder, special_token};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, TokenizerFault};

/// A tokenizer with its chat template. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    core: tokenizers::Tokenizer,
    /// What goes around every text, where `core` does not add it itself.
    before: Vec<u32>,
    after: Vec<u32>,
    template: Option<String>,
    /// What templates call `bos_token`, `eos_token` and so on.
    named: BTreeMap<String, String>,
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Tokenizer {
    /// The ids of `text`. With `add_special`, the tokens that the model wants around every text are added;
    /// a rendered chat has them already. Special tokens that are spelled out in the text are recognised.
    ///
    /// # Errors
    /// When the tokenizer fails on this text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let inner = &self.inner;
        let encoding = inner.core.encode_fast(text, add_special).map_err(|e| self.invalid(&e))?;
        let ids = encoding.get_ids();
        if !add_special {
            return Ok(ids.to_vec());
        }
        Ok([&inner.before, ids, &inner.after].concat())
    }

    /// The text of `ids`. With `skip_special`, control tokens are left out.
    ///
    /// # Errors
    /// When the tokenizer fails on these ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        self.inner.core.decode(ids, skip_special).map_err(|e| self.invalid(&e))
    }

    /// The spelling of a token in the vocabulary; byte-level vocabularies write a space as `Ġ`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.core.id_to_token(id)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.core.token_to_id(token)
    }

    /// Whether a token is a control token, such as the end of a turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.core.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Every control token: id and spelling, by id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.inner.core.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        let mut list: Vec<_> = special.map(|(id, token)| (*id, token.content.clone())).collect();
        list.sort_unstable();
        list
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.inner.template.is_some()
    }

    /// `messages` as the model wants a chat written, with the beginning of its answer.
    ///
    /// # Errors
    /// When there is no template, or it fails or rejects these messages.
    pub fn render_chat(&self, messages: &[Message]) -> Result<String, Error> {
        let Some(template) = &self.inner.template else {
            return Err(tokenizer_error(&self.inner.path, TokenizerFault::NoTemplate));
        };
        chat::render(template, messages, &self.inner.named)
            .map_err(|message| tokenizer_error(&self.inner.path, TokenizerFault::Template { message }))
    }

    /// Entries of the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.core.get_vocab_size(true)
    }

    fn invalid(&self, error: &tokenizers::Error) -> Error {
        tokenizer_error(&self.inner.path, invalid(error))
    }
}

fn invalid(error: &impl ToString) -> TokenizerFault {
    TokenizerFault::Invalid { message: error.to_string() }
}

fn tokenizer_error(path: &Path, fault: TokenizerFault) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), fault }
}
