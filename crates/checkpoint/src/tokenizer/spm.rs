//! SentencePiece's BPE, as Llama 1 and 2, Mistral and Gemma have it: pieces with scores, and bytes for what no
//! piece covers.

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{DecoderWrapper, Tokenizer};

use super::gguf::{Vocabulary, model_error};
use crate::TokenizerFault;

/// What stands for a space.
const SPACE: &str = "▁";

/// A tokenizer of this vocabulary, which merges the pieces of the highest score first.
pub(super) fn build(
    vocabulary: &Vocabulary,
    scores: &[f64],
    space_first: bool,
) -> Result<Tokenizer, TokenizerFault> {
    let ids = (0..).zip(&vocabulary.tokens).map(|(id, token)| ((*token).to_owned(), id));
    let mut builder = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), merges(vocabulary, scores))
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = vocabulary.unknown() {
        builder = builder.unk_token(unknown.to_owned());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(|error| model_error(&error))?);

    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = Vec::new();
    if space_first {
        normalizers.push(Prepend::new(SPACE.to_owned()).into());
    }
    normalizers.push(Replace::new(" ", SPACE).map_err(|error| model_error(&error))?.into());
    decoders.push(Replace::new(SPACE, " ").map_err(|error| model_error(&error))?.into());
    decoders.push(ByteFallback::new().into());
    decoders.push(Fuse::new().into());
    if space_first {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Sequence::new(normalizers)));
    tokenizer.with_decoder(Some(tokenizers::decoders::sequence::Sequence::new(decoders)));
    Ok(tokenizer)
}

/// Every way that two pieces make a third, those with the highest score of the third first.
fn merges(vocabulary: &Vocabulary, scores: &[f64]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (id, &piece) in vocabulary.tokens.iter().enumerate() {
        if !vocabulary.is_text(id) {
            continue;
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (vocabulary.ids.get(left), vocabulary.ids.get(right)) {
                found.push((scores.get(id).copied().unwrap_or(0.0), l, r, left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect()
}
