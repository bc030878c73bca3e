//! Malformed GGUF files: each fault is found, and named.

mod common;

use common::{F32, Gguf, Q8_0, sizes, tiny, write};
use firstdiff_checkpoint::gguf::Header;
use firstdiff_checkpoint::{Checkpoint, Error, GgufFault};
use proptest::prelude::*;

fn fault(file: &[u8]) -> GgufFault {
    Header::parse(file).expect_err("the file is malformed")
}

fn fault_of(gguf: &Gguf) -> GgufFault {
    fault(&gguf.build())
}

#[test]
fn both_supported_versions_are_read() {
    for version in [2, 3] {
        let header = Header::parse(&tiny("llama").build_as(version, 5, 9)).unwrap();
        assert_eq!((header.version, header.tensors.len()), (version, 5));
    }
}

#[test]
fn other_files_and_versions_are_refused_by_what_they_are() {
    let sound = tiny("llama").build();
    assert!(matches!(fault(b""), GgufFault::Truncated { .. }));
    assert!(matches!(fault(b"PK\x03\x04 and so on"), GgufFault::NotGguf { .. }));
    assert_eq!(fault(&tiny("llama").build_as(1, 5, 9)), GgufFault::Version { version: 1 });
    assert_eq!(fault(&tiny("llama").build_as(99, 5, 9)), GgufFault::Version { version: 99 });
    assert_eq!(fault(&tiny("llama").build_as(3u32.swap_bytes(), 5, 9)), GgufFault::BigEndian);
    assert!(Header::parse(&sound).is_ok());
}

#[test]
fn a_part_of_a_split_model_is_refused_by_number() {
    let part = sizes("llama").u32("split.no", 1).u32("split.count", 3);
    assert_eq!(fault_of(&part), GgufFault::Split { number: 2, count: 3 });
}

#[test]
fn counts_that_the_file_has_no_room_for_are_refused_before_anything_is_allocated() {
    for count in [100, 1 << 33, 1 << 60, u64::MAX] {
        assert!(matches!(fault(&tiny("llama").build_as(3, count, 9)), GgufFault::Count { .. }));
        assert!(matches!(
            fault(&tiny("llama").build_as(3, 5, count)),
            GgufFault::Count { .. } | GgufFault::Truncated { .. } | GgufFault::StringLength { .. }
        ));
    }
    for kind in [0u32, 5, 8, 10] {
        for count in [1u64 << 33, 1 << 61, u64::MAX] {
            let array = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
            let file = Gguf::default().raw("a.list", 9, &array);
            assert!(matches!(fault_of(&file), GgufFault::Count { what, .. } if what == "a.list"));
        }
    }
}

#[test]
fn strings_that_end_after_the_file_are_refused() {
    for length in [1000u64, 1 << 40, u64::MAX] {
        let file = Gguf::default().raw("a.name", 8, &length.to_le_bytes());
        assert!(
            matches!(fault_of(&file), GgufFault::StringLength { what, length: l, .. } if what == "a.name" && l == length)
        );
    }
}

#[test]
fn keys_are_refused_that_occur_twice_or_have_no_type_or_nest() {
    let twice = Gguf::default().u32("a.b", 1).u32("a.b", 1);
    assert_eq!(fault_of(&twice), GgufFault::DuplicateKey { key: "a.b".into() });
    let untyped = Gguf::default().raw("a.b", 13, &[0; 8]);
    assert_eq!(fault_of(&untyped), GgufFault::ValueType { key: "a.b".into(), number: 13 });
    let nested = Gguf::default().raw("a.b", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fault_of(&nested), GgufFault::NestedArray { key: "a.b".into() });
    let not_text = Gguf::default().raw("a.b", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    assert_eq!(fault_of(&not_text), GgufFault::NotUtf8 { what: "a.b".into() });
}

#[test]
fn alignments_must_be_powers_of_two() {
    for alignment in [0, 3, 48] {
        let file = sizes("llama").u32("general.alignment", alignment);
        assert_eq!(fault_of(&file), GgufFault::Alignment { alignment: alignment.into() });
    }
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let shaped = |ne: &[u64], kind| fault_of(&sizes("llama").tensor_at("t", ne, kind, 0));
    let tensor = || "t".to_owned();
    assert_eq!(shaped(&[1, 1, 1, 1, 1], F32), GgufFault::Dimensions { tensor: tensor(), n_dims: 5 });
    assert_eq!(shaped(&[4, 0], F32), GgufFault::AxisLength { tensor: tensor(), length: 0 });
    assert_eq!(shaped(&[1 << 40, 1 << 40], F32), GgufFault::TooManyElements { tensor: tensor() });
    assert_eq!(shaped(&[u64::MAX], F32), GgufFault::TooManyElements { tensor: tensor() });
    assert!(matches!(shaped(&[33, 32], Q8_0), GgufFault::RaggedRow { row: 33, .. }));
}

#[test]
fn types_that_cannot_be_read_are_refused_by_name() {
    let typed = |kind| fault_of(&sizes("llama").tensor_at("t", &[256], kind, 0));
    for (number, name) in [(16, "IQ2_XXS"), (19, "IQ1_S"), (34, "TQ1_0")] {
        assert_eq!(typed(number), GgufFault::UnsupportedType { tensor: "t".into(), kind: name });
    }
    for number in [4, 36, 1000] {
        assert_eq!(typed(number), GgufFault::UnknownType { tensor: "t".into(), number });
    }
}

#[test]
fn tensors_must_lie_in_the_file_where_alignment_allows_and_apart() {
    let placed = |offset| fault_of(&sizes("llama").tensor_at("t", &[4], F32, offset));
    assert_eq!(placed(8), GgufFault::Unaligned { tensor: "t".into(), offset: 8, alignment: 32 });
    assert!(matches!(placed(0), GgufFault::PastEnd { tensor, .. } if tensor == "t"));
    assert!(matches!(placed(u64::MAX - 31), GgufFault::PastEnd { .. }));
    let twice = sizes("llama").f32_tensor("t", &[1], &[0.0]).f32_tensor("t", &[1], &[0.0]);
    assert_eq!(fault_of(&twice), GgufFault::DuplicateTensor { tensor: "t".into() });
    let shared = sizes("llama").f32_tensor("t", &[16], &[0.0; 16]).tensor_at("u", &[8], F32, 32);
    assert_eq!(fault_of(&shared), GgufFault::Overlap { tensor: "t".into(), other: "u".into() });
}

#[test]
fn a_truncated_tensor_is_named_with_its_bytes_and_the_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let whole = tiny("llama").build();
    let path = write(folder.path(), "cut.gguf", &whole[..whole.len() - 1]);
    let message = Checkpoint::open(&path).unwrap_err().to_string();
    let (to, has) = (whole.len(), whole.len() - 1);
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    assert!(message.contains("blk.0.attn_v.weight needs bytes"), "{message}");
    assert!(message.contains(&format!("..{to}, the file has {has}; download it again")), "{message}");
}

#[test]
fn two_names_that_become_one_are_refused() {
    let file = tiny("llama").f32_tensor("model.embed_tokens.weight", &[1], &[0.0]);
    let Err(Error::NameClash { name, .. }) = file.try_open() else { panic!("both were accepted") };
    assert_eq!(name, "model.embed_tokens.weight");
}

/// A sound file with a vocabulary, so that damage can reach everything.
fn whole() -> Gguf {
    tiny("llama")
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strs("tokenizer.ggml.tokens", &["a", "b", "ab", "<|im_end|>"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3])
        .strs("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.eos_token_id", 3)
        .str("tokenizer.chat_template", "{{ messages[0].content }}<|im_end|>")
}

/// Uses everything of a file that opens.
fn exercise(file: &[u8]) {
    let folder = tempfile::TempDir::new().unwrap();
    let Ok(checkpoint) = Checkpoint::open(&write(folder.path(), "model.gguf", file)) else { return };
    for tensor in checkpoint.tensors() {
        assert!(tensor.len() <= file.len() * 4, "more values than the file can hold");
        let _ = checkpoint.read(tensor);
        let _ = checkpoint.mapped_f32(tensor);
    }
    let _ = (checkpoint.generation(), checkpoint.fingerprint());
    if let Ok(tokenizer) = checkpoint.tokenizer() {
        let _ = tokenizer.encode("ab <|im_end|>", true);
    }
}

#[test]
fn the_file_that_is_damaged_below_is_sound() {
    let checkpoint = whole().open();
    assert_eq!(checkpoint.tokenizer().unwrap().encode("ab", true).unwrap(), [2]);
    exercise(&whole().build());
}

proptest! {
    #[test]
    fn no_truncation_panics(length in 0usize..4096) {
        let file = whole().build();
        exercise(&file[..length.min(file.len())]);
    }

    #[test]
    fn no_damaged_bytes_panic(damage in prop::collection::vec((0usize..4096, any::<u8>()), 1..6)) {
        let mut file = whole().build();
        for (at, byte) in damage {
            let at = at % file.len();
            file[at] = byte;
        }
        exercise(&file);
    }

    #[test]
    fn no_huge_number_panics(at in 0usize..4096, number in prop::sample::select(vec![
        0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 60, (1 << 63) - 1, u64::MAX - 31,
    ])) {
        let mut file = whole().build();
        let at = at % (file.len() - 8);
        file[at..at + 8].copy_from_slice(&number.to_le_bytes());
        exercise(&file);
    }
}
