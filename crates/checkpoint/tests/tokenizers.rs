//! Small vocabularies, worked by hand. Real ones are compared with llama.cpp in `tests/python`.

mod common;

use common::{Gguf, safetensors, sizes, write};
use firstdiff_checkpoint::{Checkpoint, Error, Message, TokenizerFault};
use serde_json::json;
use tempfile::TempDir;

fn user(content: &str) -> Vec<Message> {
    vec![Message { role: "user".into(), content: content.into() }]
}

fn byte_level() -> Gguf {
    sizes("llama")
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strs("tokenizer.ggml.tokens", &["1", "2", "a", "b", "Ġ", "ab", "Ġab", "12", "<|im_end|>", "<|x|>"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 1, 1, 1, 3, 4])
        .strs("tokenizer.ggml.merges", &["a b", "Ġ ab", "1 2"])
        .u32("tokenizer.ggml.bos_token_id", 8)
        .u32("tokenizer.ggml.eos_token_id", 700)
        .u32("tokenizer.ggml.eot_token_id", 8)
        .str("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}<|im_end|><|x|>")
}

#[test]
fn byte_level_vocabularies_merge_by_rank_within_words() {
    let tokenizer = byte_level().open().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("ab ab", false).unwrap(), [5, 6]);
    // Digits stand alone in this way of splitting, though 12 is a token.
    assert_eq!(tokenizer.encode("12", false).unwrap(), [0, 1]);
    assert_eq!(tokenizer.encode("a<|im_end|>b<|x|>", false).unwrap(), [2, 8, 3, 9]);
    assert_eq!(tokenizer.decode(&[5, 6, 8], false).unwrap(), "ab ab<|im_end|>");
    assert_eq!(tokenizer.decode(&[5, 6, 8], true).unwrap(), "ab ab");
    assert_eq!(tokenizer.token(6).as_deref(), Some("Ġab"));
    assert_eq!(tokenizer.token(700), None);
    assert_eq!(tokenizer.vocab_size(), 10);
}

#[test]
fn every_declared_stop_id_is_listed_with_each_place_that_declares_it() {
    let generation = byte_level().open().generation();
    let stops: Vec<_> = generation.stop_ids.into_iter().collect();
    assert_eq!(
        stops,
        [
            (8, vec!["tokenizer.ggml.eot_token_id".to_owned(), "chat template: <|im_end|>".to_owned()]),
            (700, vec!["tokenizer.ggml.eos_token_id".to_owned()]),
        ]
    );
    assert_eq!((generation.bos, generation.add_bos), (Some(8), false));
}

#[test]
fn the_first_token_is_added_where_the_file_says_so() {
    let file = byte_level().bool("tokenizer.ggml.add_bos_token", true);
    let checkpoint = file.open();
    assert!(checkpoint.generation().add_bos);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [8, 2]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [2]);
}

#[test]
fn chats_go_through_the_template() {
    let tokenizer = byte_level().open().tokenizer().unwrap();
    assert!(tokenizer.has_chat_template());
    assert_eq!(tokenizer.render_chat(&user("ab")).unwrap(), "<|im_end|>ab<|im_end|><|x|>");
}

#[test]
fn pieces_with_scores_merge_the_best_first_and_fall_back_to_bytes() {
    let tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "ab", "bc", "▁a", "abc"];
    let file = |space: bool| {
        sizes("llama")
            .str("tokenizer.ggml.model", "llama")
            .strs("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1])
            .f32s("tokenizer.ggml.scores", &[0., 0., 0., 0., 0., -9., -9., -9., -9., -3., -2., -4., -1.])
            .u32("tokenizer.ggml.bos_token_id", 1)
            .bool("tokenizer.ggml.add_space_prefix", space)
            .open()
            .tokenizer()
            .unwrap()
    };
    let plain = file(false);
    // "bc" beats "ab", then "abc" is made of "a" and "bc".
    assert_eq!(plain.encode("abc", false).unwrap(), [12]);
    assert_eq!(plain.encode("ab", false).unwrap(), [9]);
    assert_eq!(plain.encode("é", false).unwrap(), [3, 4]);
    assert_eq!(plain.decode(&[9, 3, 4], false).unwrap(), "abé");
    assert_eq!(plain.encode("a", true).unwrap(), [1, 6], "the first token is added unless the file says no");
    let spaced = file(true);
    assert_eq!(spaced.encode("a b", false).unwrap(), [11, 5, 7]);
    assert_eq!(spaced.decode(&[11, 5, 7], false).unwrap(), "a b");
}

#[test]
fn vocabularies_that_cannot_be_used_say_why() {
    let fault = |file: Gguf| match file.open().tokenizer() {
        Err(Error::Tokenizer { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    let base = || sizes("llama").str("tokenizer.ggml.model", "gpt2");
    assert!(matches!(fault(sizes("llama")), TokenizerFault::NoVocabulary { .. }));
    assert!(matches!(fault(base()), TokenizerFault::NoVocabulary { key } if key == "tokenizer.ggml.tokens"));
    let unknown = base().str("tokenizer.ggml.pre", "no-such");
    assert!(matches!(fault(unknown), TokenizerFault::PreTokenizer { pre } if pre == "no-such"));
    let other = sizes("llama").str("tokenizer.ggml.model", "rwkv");
    assert!(matches!(fault(other), TokenizerFault::Model { model } if model == "rwkv"));
    let twice = base().strs("tokenizer.ggml.tokens", &["a", "a"]);
    assert!(matches!(fault(twice), TokenizerFault::DuplicateToken { first: 0, second: 1, .. }));
    let short = base().strs("tokenizer.ggml.tokens", &["a", "b"]).i32s("tokenizer.ggml.token_type", &[1]);
    assert!(matches!(fault(short), TokenizerFault::ListLength { found: 1, tokens: 2, .. }));
    for merge in ["a", "a  b", "a c", "a b", ""] {
        let merges =
            base().strs("tokenizer.ggml.tokens", &["a", "b"]).strs("tokenizer.ggml.merges", &[merge]);
        assert!(matches!(fault(merges), TokenizerFault::Merge { .. }), "{merge:?}");
    }
}

/// A folder with a tokenizer of three words.
fn folder(template: serde_json::Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    let json = |name: &str, value: serde_json::Value| {
        write(folder.path(), name, &serde_json::to_vec(&value).unwrap());
    };
    write(folder.path(), "model.safetensors", &safetensors(&[("a", &[1.0])]));
    json("config.json", json!({"model_type": "llama", "eos_token_id": [2, 90]}));
    json("generation_config.json", json!({"eos_token_id": 2}));
    let end = json!({"__type": "AddedToken", "content": "</s>"});
    json("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": end, "chat_template": template}));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    json(
        "tokenizer.json",
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "added_tokens": [special(1, "<s>"), special(2, "</s>"), special(3, "<|im_end|>")],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "model": {"type": "WordLevel", "unk_token": "u", "vocab": {"u": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 3, "hi": 4}},
        }),
    );
    folder
}

#[test]
fn folders_have_their_own_tokenizer_and_template() {
    let folder = folder(json!("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}<|im_end|>"));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("hi there", true).unwrap(), [1, 4, 0]);
    assert_eq!(tokenizer.encode("hi", false).unwrap(), [4]);
    assert_eq!(tokenizer.render_chat(&user("hi")).unwrap(), "<s>hi</s><|im_end|>");
    let generation = checkpoint.generation();
    let stops: Vec<_> = generation.stop_ids.iter().map(|(id, origins)| (*id, origins.join(", "))).collect();
    assert_eq!(
        stops,
        [
            (2, "generation_config.json eos_token_id, config.json eos_token_id, tokenizer_config.json eos_token".into()),
            (3, "chat template: <|im_end|>".into()),
            (90, "config.json eos_token_id".to_owned()),
        ]
    );
    assert_eq!((generation.bos, generation.add_bos), (Some(1), true));
}

#[test]
fn a_template_file_comes_before_a_listed_one_and_that_before_none() {
    let listed = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "listed"}]);
    let folder = folder(listed);
    let rendered = || Checkpoint::open(folder.path()).unwrap().tokenizer().unwrap().render_chat(&user("hi"));
    assert_eq!(rendered().unwrap(), "listed");
    write(folder.path(), "chat_template.jinja", b"of its own");
    assert_eq!(rendered().unwrap(), "of its own");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    write(folder.path(), "tokenizer_config.json", b"{}");
    assert!(matches!(rendered(), Err(Error::Tokenizer { fault: TokenizerFault::NoTemplate, .. })));
}

#[test]
fn a_folder_without_a_tokenizer_still_opens_and_says_so_when_asked() {
    let folder = folder(json!(null));
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = checkpoint.tokenizer().unwrap_err();
    assert!(matches!(error, Error::Tokenizer { fault: TokenizerFault::NoFile, .. }));
    assert_eq!(checkpoint.generation().stop_ids.keys().copied().collect::<Vec<_>>(), [2, 90]);
    write(folder.path(), "tokenizer.json", b"{\"model\":");
    assert!(matches!(
        checkpoint.tokenizer(),
        Err(Error::Tokenizer { fault: TokenizerFault::Invalid { .. }, .. })
    ));
}
