//! Text to token ids and back, and the chat template.

use crate::Error;

/// A tokenizer with its chat template.
#[derive(Clone, Debug)]
pub struct Tokenizer {}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Tokenizer {
    /// The ids of `text`. With `add_special`, the tokens that the model wants around every text are added.
    ///
    /// # Errors
    /// When the tokenizer fails on this text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let _ = (text, add_special);
        todo!()
    }

    /// The text of `ids`. With `skip_special`, control tokens are left out.
    ///
    /// # Errors
    /// When the tokenizer fails on these ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        let _ = (ids, skip_special);
        todo!()
    }

    /// The spelling of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        let _ = id;
        todo!()
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        todo!()
    }

    /// `messages` as the model wants a chat written, with the beginning of its answer.
    ///
    /// # Errors
    /// When there is no template, or it fails or rejects these messages.
    pub fn render_chat(&self, messages: &[Message]) -> Result<String, Error> {
        let _ = messages;
        todo!()
    }

    /// Entries of the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
}
