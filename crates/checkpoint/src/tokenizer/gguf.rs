//! A tokenizer from the metadata of a GGUF file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use tokenizers::AddedToken;

use super::pre::{self, Pre};
use super::{Inner, Tokenizer, bpe, invalid, spm, tokenizer_error};
use crate::gguf::Metadata;
use crate::{Error, TokenizerFault};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// llama.cpp's kinds of tokens.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// A vocabulary: spellings by id, and ids by spelling.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<&'a str>,
    pub(super) ids: HashMap<&'a str, u32>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata, file: &'a [u8]) -> Result<Vocabulary<'a>, TokenizerFault> {
        let Some(tokens) = metadata.strings(file, TOKENS)? else {
            return Err(TokenizerFault::NoVocabulary { key: TOKENS.to_owned() });
        };
        let types = metadata.integers(file, TYPES)?.unwrap_or_else(|| vec![1; tokens.len()]);
        check_length(TYPES, types.len(), tokens.len())?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, &token) in (0..).zip(&tokens) {
            if let Some(first) = ids.insert(token, id) {
                return Err(TokenizerFault::DuplicateToken { token: token.to_owned(), first, second: id });
            }
        }
        Ok(Vocabulary { tokens, ids, types })
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(1)
    }

    /// Whether merging may make this token: it is plain text.
    pub(super) fn is_text(&self, id: usize) -> bool {
        !matches!(self.kind(id), UNKNOWN | CONTROL | BYTE)
    }

    /// The token for what no other token covers.
    pub(super) fn unknown(&self) -> Option<&'a str> {
        let id = self.types.iter().position(|&kind| kind == UNKNOWN)?;
        self.tokens.get(id).copied()
    }

    /// Tokens that are found in text before it is split.
    fn added(&self) -> Vec<AddedToken> {
        let listed = self.tokens.iter().zip(&self.types).filter(|(token, _)| !token.is_empty());
        listed
            .filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED))
            .map(|(&token, &kind)| AddedToken::from(token, kind == CONTROL).normalized(false))
            .collect()
    }
}

fn check_length(key: &str, found: usize, tokens: usize) -> Result<(), TokenizerFault> {
    if found == tokens {
        return Ok(());
    }
    Err(TokenizerFault::ListLength { key: key.to_owned(), found, tokens })
}

/// The kind of tokenizer: `gpt2` for byte-level BPE, `llama` for SentencePiece.
fn model(metadata: &Metadata) -> Result<&str, TokenizerFault> {
    let key = "tokenizer.ggml.model";
    metadata.string(key)?.ok_or_else(|| TokenizerFault::NoVocabulary { key: key.to_owned() })
}

fn find_pre(metadata: &Metadata) -> Result<&'static Pre, TokenizerFault> {
    let name = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    pre::find(name).ok_or_else(|| TokenizerFault::PreTokenizer { pre: name.to_owned() })
}

/// Whether the beginning-of-sequence token comes before every text.
pub(crate) fn adds_bos(metadata: &Metadata) -> bool {
    match metadata.bool("tokenizer.ggml.add_bos_token") {
        Ok(Some(adds)) => adds,
        _ => match model(metadata) {
            Ok("llama") => true,
            _ => find_pre(metadata).is_ok_and(|pre| pre.adds_bos),
        },
    }
}

/// The tokenizer of a GGUF file at `path`, whose bytes are `file`.
pub(crate) fn from_gguf(path: &Path, metadata: &Metadata, file: &[u8]) -> Result<Tokenizer, Error> {
    build(path, metadata, file).map_err(|fault| tokenizer_error(path, fault))
}

fn build(path: &Path, metadata: &Metadata, file: &[u8]) -> Result<Tokenizer, TokenizerFault> {
    let model = model(metadata)?;
    let mut core = match model {
        "gpt2" => {
            let pre = find_pre(metadata)?;
            let vocabulary = Vocabulary::read(metadata, file)?;
            let merges = metadata
                .strings(file, MERGES)?
                .ok_or_else(|| TokenizerFault::NoVocabulary { key: MERGES.to_owned() })?;
            let mut core = bpe::build(&vocabulary, &merges, pre)?;
            add(&mut core, &vocabulary);
            core
        }
        "llama" => {
            let vocabulary = Vocabulary::read(metadata, file)?;
            let scores = metadata
                .floats(file, SCORES)?
                .ok_or_else(|| TokenizerFault::NoVocabulary { key: SCORES.to_owned() })?;
            check_length(SCORES, scores.len(), vocabulary.tokens.len())?;
            let space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            let mut core = spm::build(&vocabulary, &scores, space)?;
            add(&mut core, &vocabulary);
            core
        }
        other => return Err(TokenizerFault::Model { model: other.to_owned() }),
    };
    core.with_padding(None);

    let mut named = BTreeMap::new();
    let mut id_of = |name: &str| -> Result<Option<u32>, TokenizerFault> {
        let id = metadata.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
        let id = id.and_then(|id| u32::try_from(id).ok());
        if let Some(token) = id.and_then(|id| core.id_to_token(id)) {
            named.insert(format!("{name}_token"), token);
        }
        Ok(id)
    };
    let (bos, eos) = (id_of("bos")?, id_of("eos")?);
    let adds_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let before = bos.filter(|_| adds_bos(metadata)).into_iter().collect();
    let after = eos.filter(|_| adds_eos).into_iter().collect();
    let template = metadata.string("tokenizer.chat_template")?.map(str::to_owned);
    let path = path.to_path_buf();
    Ok(Tokenizer { inner: Arc::new(Inner { path, core, before, after, template, named }) })
}

fn add(core: &mut tokenizers::Tokenizer, vocabulary: &Vocabulary) {
    core.add_tokens(&vocabulary.added());
}

/// Wraps a library error of building a model.
pub(super) fn model_error(error: &tokenizers::Error) -> TokenizerFault {
    invalid(error)
}
