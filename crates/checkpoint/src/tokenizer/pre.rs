//! How byte-level vocabularies split text into words, by the name a GGUF file has for it.

/// One way to split text.
pub(super) struct Pre {
    /// The names of `tokenizer.ggml.pre` that mean it.
    pub(super) names: &'static [&'static str],
    /// Patterns that split one after the other; what they match, and what lies between, are words.
    pub(super) patterns: &'static [&'static str],
    /// Whether canonical composition (NFC) comes first. llama.cpp leaves it out, so that its ids differ
    /// for text with separate accents; the models' own tokenizers have it.
    pub(super) composes: bool,
    /// Whether a word that is itself a token is that token, whatever merges would give.
    pub(super) ignores_merges: bool,
    /// Whether the beginning-of-sequence token is added where the file does not say.
    pub(super) adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PLAIN: Pre =
    Pre { names: &[], patterns: &[GPT2], composes: false, ignores_merges: false, adds_bos: false };

/// Every way that is supported.
pub(super) const PRE_TOKENIZERS: &[Pre] = &[
    Pre { names: &["gpt-2", "phi-2", "olmo", "jina-es", "jina-de", "mpt"], ..PLAIN },
    // What llama.cpp does for a file that names nothing.
    Pre {
        names: &["default"],
        patterns: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        ..PLAIN
    },
    // Digits stand alone, then as GPT-2.
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Pre { names: &["qwen2", "deepseek-r1-qwen", "megrez"], patterns: &[QWEN2], composes: true, ..PLAIN },
    Pre { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], ..PLAIN },
    Pre {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3"],
        patterns: &[LLAMA3],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
];

/// The way that a file's `tokenizer.ggml.pre` names.
pub(super) fn find(name: &str) -> Option<&'static Pre> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_stands_for_two_ways() {
        let mut names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).collect();
        let before = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
