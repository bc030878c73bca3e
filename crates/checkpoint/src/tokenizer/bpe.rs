//! Byte-level BPE, as GPT-2 began it.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::gguf::{Vocabulary, model_error};
use super::pre::Pre;
use crate::TokenizerFault;

/// A tokenizer of this vocabulary and these merges ("left right"), in order of rank.
pub(super) fn build(
    vocabulary: &Vocabulary,
    merges: &[&str],
    pre: &Pre,
) -> Result<Tokenizer, TokenizerFault> {
    let merges = merges.iter().map(|merge| split_merge(merge, vocabulary)).collect::<Result<Vec<_>, _>>()?;
    let ids = (0..).zip(&vocabulary.tokens).map(|(id, token)| ((*token).to_owned(), id));
    let model = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(pre.ignores_merges)
        .build()
        .map_err(|error| model_error(&error))?;

    let mut splits: Vec<PreTokenizerWrapper> = Vec::with_capacity(pre.patterns.len() + 1);
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        splits.push(split.map_err(|error| model_error(&error))?.into());
    }
    splits.push(ByteLevel::new(false, true, false).into());

    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(splits)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    if pre.composes {
        tokenizer.with_normalizer(Some(NFC));
    }
    Ok(tokenizer)
}

/// The two sides of a merge. Tokens may themselves hold no space, so the first one after the start parts them.
fn split_merge(merge: &str, vocabulary: &Vocabulary) -> Result<(String, String), TokenizerFault> {
    let is_token = |token: &str| vocabulary.ids.contains_key(token);
    let sides = merge.char_indices().skip(1).filter(|&(_, c)| c == ' ').map(|(at, _)| merge.split_at(at));
    sides
        .map(|(left, right)| (left, &right[1..]))
        .find(|(left, right)| is_token(left) && is_token(right) && is_token(&format!("{left}{right}")))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .ok_or_else(|| TokenizerFault::Merge { merge: merge.to_owned() })
}
