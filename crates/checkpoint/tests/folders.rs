//! Model folders: what opens, what is refused, and what is said.

mod common;

use std::path::Path;

use common::{safetensors, safetensors_as, tiny, write};
use firstdiff_checkpoint::{Checkpoint, Error, FolderFault, Format, Storage};
use serde_json::json;
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";

/// A folder with a `config.json` and these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    write(
        folder.path(),
        "config.json",
        br#"{"model_type": "llama", "rope_theta": 7.5, "rope_scaling": null}"#,
    );
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
    }
    folder
}

fn fault(folder: &TempDir) -> FolderFault {
    match Checkpoint::open(folder.path()) {
        Err(Error::Folder { fault, .. }) => *fault,
        other => panic!("{other:?}"),
    }
}

fn index(weights: &[(&str, &str)]) -> Vec<u8> {
    let weights: serde_json::Map<_, _> =
        weights.iter().map(|(tensor, shard)| ((*tensor).to_owned(), json!(shard))).collect();
    serde_json::to_vec(&json!({"weight_map": weights})).unwrap()
}

#[test]
fn a_single_file_opens_with_its_configuration() {
    let folder = folder(&[("model.safetensors", &safetensors(&[("b", &[2.0, 3.0]), ("a", &[1.0])]))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.format(), Format::SafeTensors);
    assert_eq!(checkpoint.config().get("rope_theta"), Some(&json!(7.5)));
    assert_eq!(checkpoint.config().get("rope_scaling"), Some(&json!(null)));
    assert_eq!(checkpoint.config().origin("rope_theta"), Some("config.json: rope_theta"));
    let b = checkpoint.tensor("b").unwrap();
    assert_eq!((&b.shape[..], b.storage), (&[2][..], Storage::F32));
    assert_eq!(checkpoint.read(b).unwrap(), [2.0, 3.0]);
}

#[test]
fn shards_open_as_one_model() {
    let folder = folder(&[
        ("one.safetensors", &safetensors(&[("a", &[1.0])])),
        ("two.safetensors", &safetensors(&[("b", &[2.0])])),
        (INDEX, &index(&[("a", "one.safetensors"), ("b", "two.safetensors")])),
    ]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let values: Vec<_> = checkpoint.tensors().map(|tensor| checkpoint.read(tensor).unwrap()).collect();
    assert_eq!(values, [[1.0], [2.0]]);
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    let outside = TempDir::new().unwrap();
    let absolute = write(outside.path(), "x.safetensors", &safetensors(&[("a", &[1.0])]));
    let absolute = absolute.to_str().unwrap();
    for name in ["../x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..", ".", "", "C:x", absolute]
    {
        let folder = folder(&[(INDEX, &index(&[("a", name)]))]);
        assert!(matches!(fault(&folder), FolderFault::ShardName { name: n } if n == name), "{name}");
    }
}

#[test]
fn an_index_must_be_true() {
    let one = safetensors(&[("a", &[1.0])]);
    let two = safetensors(&[("a", &[1.0]), ("b", &[2.0])]);
    let missing = folder(&[(INDEX, &index(&[("a", "one.safetensors")]))]);
    assert!(matches!(fault(&missing), FolderFault::MissingShard { shard } if shard == "one.safetensors"));
    let absent = folder(&[("one.safetensors", &one), (INDEX, &index(&[("b", "one.safetensors")]))]);
    assert!(matches!(fault(&absent), FolderFault::MissingTensor { tensor, .. } if tensor == "b"));
    let both = folder(&[
        ("one.safetensors", &one),
        ("two.safetensors", &two),
        (INDEX, &index(&[("a", "one.safetensors"), ("b", "two.safetensors")])),
    ]);
    assert!(matches!(fault(&both), FolderFault::DuplicateTensor { tensor, .. } if tensor == "a"));
    for text in [&b"[]"[..], b"{", b"{}", br#"{"weight_map": {"a": 1}}"#] {
        assert!(matches!(fault(&folder(&[(INDEX, text)])), FolderFault::Json { .. }));
    }
}

#[test]
fn element_types_that_cannot_be_read_are_refused_by_name() {
    let folder = folder(&[("model.safetensors", &safetensors_as("F8_E4M3FNUZ", &[("a", &[1.0])]))]);
    assert!(
        matches!(fault(&folder), FolderFault::DType { tensor, dtype } if tensor == "a" && dtype == "F8_E4M3FNUZ")
    );
}

#[test]
fn damaged_safetensors_are_refused() {
    let sound = safetensors(&[("a", &[1.0])]);
    for cut in 0..sound.len() {
        let folder = folder(&[("model.safetensors", &sound[..cut])]);
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Folder { .. } | Error::Io { .. }), "{error}");
    }
    let mut huge = sound;
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(fault(&folder(&[("model.safetensors", &huge)])), FolderFault::Header { .. }));
}

#[test]
fn a_nested_text_configuration_is_flattened_and_names_follow() {
    let folder = folder(&[
        (
            "config.json",
            br#"{"model_type": "gemma3", "eos_token_id": 1, "text_config": {"model_type": "gemma3_text", "hidden_size": 5}}"#,
        ),
        (
            "model.safetensors",
            &safetensors(&[("language_model.model.norm.weight", &[1.0]), ("vision_tower.x", &[1.0])]),
        ),
    ]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config().model_type().unwrap(), "gemma3_text");
    assert_eq!(checkpoint.config().get("eos_token_id"), Some(&json!(1)));
    assert_eq!(checkpoint.config().origin("hidden_size"), Some("config.json: text_config.hidden_size"));
    let names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["model.norm.weight", "vision_tower.x"]);
}

#[test]
fn what_is_no_model_folder_is_told_what_to_do() {
    let says = |path: &Path, words: &str| {
        let message = Checkpoint::open(path).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    let empty = TempDir::new().unwrap();
    says(empty.path(), "no config.json");
    let gguf = TempDir::new().unwrap();
    let file = write(gguf.path(), "m.gguf", &tiny("llama").build());
    says(gguf.path(), "a folder with m.gguf; give that file itself");
    assert!(Checkpoint::open(&file).is_ok());
    says(folder(&[]).path(), "no safetensors file");
    says(folder(&[("pytorch_model.bin", b"PK")]).path(), "save the model as safetensors");
    says(folder(&[("a.safetensors", b""), ("b.safetensors", b"")]).path(), "2 safetensors files");
    let alone = folder(&[("model.safetensors", &safetensors(&[("a", &[1.0])]))]);
    says(&alone.path().join("model.safetensors"), "give the folder");
    says(&write(empty.path(), "model.pth", b"PK\x03\x04"), "save the model as safetensors");
    says(Path::new("no-such-owner/no-such-model"), "hf download no-such-owner/no-such-model");
    says(Path::new("./no-such-file.gguf"), "no such file or folder");
    says(&write(empty.path(), "empty.gguf", b""), "empty.gguf");
}

#[test]
fn a_configuration_far_too_large_is_not_read() {
    let folder = folder(&[]);
    let file = std::fs::File::create(folder.path().join("config.json")).unwrap();
    file.set_len(65 << 20).unwrap();
    assert!(matches!(fault(&folder), FolderFault::TooLarge { .. }));
}

#[test]
fn a_configuration_without_a_family_is_refused_when_the_family_is_asked_for() {
    let folder = folder(&[
        ("config.json", br#"{"hidden_size": 1e400}"#),
        ("model.safetensors", &safetensors(&[("a", &[1.0])])),
    ]);
    assert!(matches!(fault(&folder), FolderFault::Json { .. }));
    write(folder.path(), "config.json", br#"{"hidden_size": 99999999999999999999999}"#);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(matches!(checkpoint.config().model_type(), Err(Error::NoModelType { .. })));
}
