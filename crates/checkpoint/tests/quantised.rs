//! Quantised safetensors: slices, shapes, and what is refused. Values are compared with the public packages in
//! `tests/python`.

use std::path::Path;

use firstdiff_checkpoint::{Checkpoint, Error, FolderFault, Misreading, Storage, TensorInfo};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A stored tensor: name, element type, shape, bytes.
type Stored<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

fn folder(tensors: &[Stored], quantisation: Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    let config = json!({"model_type": "llama", "quantization_config": quantisation});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_shard(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn write_shard(path: &Path, tensors: &[Stored]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    // Data begin aligned, as writers have it.
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(path, file).unwrap();
}

fn fp8_of(block: [usize; 2]) -> Value {
    json!({"quant_method": "fp8", "weight_block_size": block})
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn codes(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 37 % 251) as u8).map(|code| if code & 0x7f == 0x7f { 0 } else { code }).collect()
}

fn rows(checkpoint: &Checkpoint, tensor: &TensorInfo, from: usize, to: usize) -> Result<Vec<f32>, Error> {
    let mut out = vec![f32::NAN; (to - from) * tensor.row_len()];
    checkpoint.read_rows(tensor, from..to, &mut out)?;
    Ok(out)
}

fn fault(folder: &TempDir) -> FolderFault {
    match Checkpoint::open(folder.path()) {
        Err(Error::Folder { fault, .. }) => *fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_cut_by_the_matrix_have_their_own_scales() {
    let scales = f32s(&[1.0, 2.0, 4.0, 8.0]);
    let stored: &[Stored] =
        &[("m.weight", "F8_E4M3", &[3, 5], vec![0x38; 15]), ("m.weight_scale_inv", "F32", &[2, 2], scales)];
    let folder = folder(stored, fp8_of([2, 4]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let weight = checkpoint.tensor("m.weight").unwrap();
    assert_eq!((weight.storage, weight.stored_bytes()), (Storage::ScaledFp8, 15 + 16));
    let expected = [[1.0, 1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 2.0], [4.0, 4.0, 4.0, 4.0, 8.0]];
    assert_eq!(checkpoint.read(weight).unwrap(), expected.concat());
    assert!(checkpoint.tensor("m.weight_scale_inv").is_none(), "scales are part of their weight");
}

#[test]
fn an_expert_is_read_without_the_others() {
    let mut exponents = vec![127; 3 * 4];
    exponents[4..8].fill(255);
    let stored: &[Stored] = &[
        ("e.up_blocks", "U8", &[3, 2, 2, 16], codes(3 * 2 * 2 * 16)),
        ("e.up_scales", "U8", &[3, 2, 2], exponents),
    ];
    let folder = folder(stored, json!({"quant_method": "mxfp4"}));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let experts = checkpoint.tensor("e.up").unwrap();
    assert_eq!((&experts.shape[..], experts.rows()), (&[3, 2, 64][..], 6));
    // The second expert's scales are all NaN: whoever read them would be told.
    for expert in [0, 2] {
        assert_eq!(rows(&checkpoint, experts, 2 * expert, 2 * expert + 2).unwrap().len(), 128);
    }
    let error = rows(&checkpoint, experts, 1, 3).unwrap_err();
    assert!(
        matches!(&error, Error::NanScale { row: 2, column: 0, tensor, .. } if tensor == "e.up"),
        "{error}"
    );
    assert!(error.to_string().contains("block (2, 0)"), "{error}");
}

#[test]
fn the_two_factors_on_top_are_reciprocal_and_told_by_name() {
    let packed = vec![0x22; 8];
    let one = vec![0x38];
    let multiplies: &[Stored] = &[
        ("m.weight", "U8", &[1, 8], packed.clone()),
        ("m.weight_scale", "F8_E4M3", &[1, 1], one.clone()),
        ("m.weight_scale_2", "F32", &[], f32s(&[4.0])),
    ];
    let divides: &[Stored] = &[
        ("m.weight_packed", "U8", &[1, 8], packed),
        ("m.weight_scale", "F8_E4M3", &[1, 1], one),
        ("m.weight_global_scale", "F32", &[1], f32s(&[4.0])),
    ];
    let value = |stored, method| {
        let folder = folder(stored, method);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.read(checkpoint.tensor("m.weight").unwrap()).unwrap()
    };
    assert_eq!(value(multiplies, json!({"quant_method": "modelopt", "quant_algo": "NVFP4"})), [4.0; 16]);
    assert_eq!(value(divides, json!({"quant_method": "compressed-tensors"})), [0.25; 16]);
}

#[test]
fn a_factor_that_is_not_positive_is_named() {
    for factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let stored: &[Stored] = &[
            ("m.weight_packed", "U8", &[1, 8], vec![0x22; 8]),
            ("m.weight_scale", "F8_E4M3", &[1, 1], vec![0x38]),
            ("m.weight_global_scale", "F32", &[1], f32s(&[factor])),
        ];
        let folder = folder(stored, json!({"quant_method": "compressed-tensors"}));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let error = checkpoint.read(checkpoint.tensor("m.weight").unwrap()).unwrap_err();
        assert!(error.to_string().contains("m.weight_global_scale is not a positive number"), "{error}");
    }
}

#[test]
fn part_of_a_block_is_refused() {
    let stored: &[Stored] =
        &[("m.weight_packed", "U8", &[2, 20], codes(40)), ("m.weight_scale", "U8", &[2, 2], vec![127; 4])];
    let folder = folder(stored, json!({"quant_method": "compressed-tensors"}));
    assert!(matches!(fault(&folder), FolderFault::PackedShape { shape, .. } if shape == [2, 20]));
}

#[test]
fn transposed_scales_say_both_shapes() {
    let stored: &[Stored] = &[
        ("m.weight", "F8_E4M3", &[4, 8], codes(32)),
        ("m.weight_scale_inv", "F32", &[4, 2], f32s(&[1.0; 8])),
    ];
    let message = fault(&folder(stored, fp8_of([2, 2]))).to_string();
    for said in ["[4, 8]", "[4, 2]", "[2, 4]", "blocks of 2 x 2"] {
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn without_a_declaration_blocks_are_not_guessed() {
    let weight = || ("m.weight", "F8_E4M3", &[4, 8][..], codes(32));
    let open = |scale: Stored| {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        write_shard(&folder.path().join("model.safetensors"), &[weight(), scale]);
        Checkpoint::open(folder.path()).map(|_| ())
    };
    assert!(open(("m.weight_scale", "F32", &[], f32s(&[1.0]))).is_ok());
    assert!(open(("m.weight_scale", "F32", &[4, 1], f32s(&[1.0; 4]))).is_ok());
    assert!(open(("m.weight_scale", "F32", &[2, 2], f32s(&[1.0; 4]))).is_err());
}

#[test]
fn an_index_may_promise_shards_that_are_not_here_to_whoever_opens_a_part() {
    let folder = TempDir::new().unwrap();
    let stored: &[Stored] = &[
        ("a.weight", "F8_E4M3", &[2, 2], codes(4)),
        ("a.weight_scale", "F32", &[1], f32s(&[1.0])),
        ("b.weight", "F8_E4M3", &[2, 2], codes(4)),
    ];
    write_shard(&folder.path().join("here.safetensors"), stored);
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let map = json!({
        "a.weight": "here.safetensors", "a.weight_scale": "here.safetensors", "b.weight": "here.safetensors",
        "b.weight_scale": "there.safetensors", "c.weight_packed": "there.safetensors"
    });
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        json!({"weight_map": map}).to_string(),
    )
    .unwrap();
    assert!(matches!(fault(&folder), FolderFault::MissingShard { shard } if shard == "there.safetensors"));
    let checkpoint = Checkpoint::open_part(folder.path()).unwrap();
    assert!(checkpoint.tensor("a.weight").is_some());
    // Half of it is elsewhere: the whole is.
    assert!(checkpoint.tensor("b.weight").is_none() && checkpoint.has("b.weight"));
    assert_eq!(checkpoint.absent("b.weight"), Some("there.safetensors"));
    assert_eq!(checkpoint.absent("c.weight"), Some("there.safetensors"));
    assert!(!checkpoint.has("d.weight"));
}

#[test]
fn misreadings_change_what_they_say_and_nothing_else() {
    let packed: Vec<u8> = (0..16).map(|n| (n * 17) ^ 0x21).collect();
    let stored: &[Stored] = &[
        ("m.weight_packed", "U8", &[2, 16], [packed.clone(), packed].concat()),
        ("m.weight_scale", "F8_E4M3", &[2, 2], vec![0x38, 0x40, 0x48, 0x50]), // 1, 2, 4, 8
        ("m.weight_global_scale", "F32", &[1], f32s(&[2.0])),
        ("f.weight", "F8_E4M3", &[2, 4], vec![0x38; 8]),
        ("f.weight_scale", "F32", &[2, 1], f32s(&[3.0, 5.0])),
    ];
    let folder = folder(stored, json!({"quant_method": "compressed-tensors"}));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let read = |name: &str, how| {
        let t = checkpoint.tensor(name).unwrap();
        (checkpoint.read(t).unwrap(), checkpoint.misread(t, how).unwrap())
    };
    let all = |how| {
        let (right, wrong) = read("m.weight", how);
        (right, wrong.unwrap())
    };
    let (right, wrong) = all(Misreading::FactorInverted);
    assert!(right.iter().zip(&wrong).all(|(r, w)| *w == 4.0 * r));
    let (right, wrong) = all(Misreading::FactorMissing);
    assert!(right.iter().zip(&wrong).all(|(r, w)| *w == 2.0 * r));
    let (right, wrong) = all(Misreading::HighNibbleFirst);
    assert!(right.chunks(2).zip(wrong.chunks(2)).all(|(r, w)| w == [r[1], r[0]]));
    let (right, wrong) = all(Misreading::ScalesTransposed);
    // The scales of the first row are those of the first column: 1 and 4.
    let factor = |i: usize| [1.0, 2.0, 0.5, 1.0][i / 16];
    assert!(right.iter().zip(&wrong).enumerate().all(|(i, (r, w))| *w == factor(i) * r));
    let (right, wrong) = all(Misreading::Block(32));
    let factor = |i: usize| [1.0, 0.5, 1.0, 0.5][i / 16];
    assert!(right.iter().zip(&wrong).enumerate().all(|(i, (r, w))| *w == factor(i) * r));
    assert_eq!(read("m.weight", Misreading::ScalesSwizzled).1, None, "two rows fill no tile");
    assert_eq!(read("f.weight", Misreading::FirstScale).1.unwrap(), [3.0; 8]);
    assert_eq!(read("f.weight", Misreading::ScaleMissing).1.unwrap(), [1.0; 8]);
    assert_eq!(read("f.weight", Misreading::FactorInverted).1, None);
    assert_eq!(read("f.weight", Misreading::TwosComplement).1, None);
}

#[test]
fn bounded_residency_changes_no_value() {
    let stored: &[Stored] =
        &[("plain", "F32", &[64, 64], f32s(&(0..4096).map(|n| n as f32).collect::<Vec<_>>()))];
    let folder = folder(stored, Value::Null);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensor = checkpoint.tensor("plain").unwrap();
    let all = checkpoint.read(tensor).unwrap();
    assert!(checkpoint.mapped_f32(tensor).is_some());
    checkpoint.bound_residency(1000);
    assert!(checkpoint.mapped_f32(tensor).is_none(), "what is borrowed for long cannot leave memory");
    for row in 0..64 {
        assert_eq!(rows(&checkpoint, tensor, row, row + 1).unwrap(), all[64 * row..64 * row + 64]);
    }
}

proptest! {
    /// Whatever shapes two tensors claim, they are refused or read; nothing reads outside of them.
    #[test]
    fn shapes_are_checked_before_anything_is_read(
        kind in 0..4usize,
        weight in prop::collection::vec(0..70usize, 0..4),
        scale in prop::collection::vec(0..10usize, 0..4),
        block in (1..40usize, 1..40usize),
    ) {
        let (name, dtype, scales, scale_type, width) = [
            ("m.weight", "F8_E4M3", "m.weight_scale_inv", "F32", 4),
            ("m.weight", "I8", "m.scale", "F8_E8M0", 1),
            ("m_blocks", "U8", "m_scales", "U8", 1),
            ("m.weight_packed", "U8", "m.weight_scale", "F8_E4M3", 1),
        ][kind];
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let stored: &[Stored] = &[
            (name, dtype, &weight, codes(count(&weight))),
            (scales, scale_type, &scale, vec![1; count(&scale) * width]),
            ("m.weight_global_scale", "F32", &[1], f32s(&[2.0])),
        ];
        let folder = folder(stored, fp8_of([block.0, block.1]));
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            for tensor in checkpoint.tensors() {
                let all = checkpoint.read(tensor).unwrap();
                for row in 0..tensor.rows() {
                    let one = rows(&checkpoint, tensor, row, row + 1).unwrap();
                    let width = tensor.row_len();
                    prop_assert_eq!(&one[..], &all[row * width..(row + 1) * width]);
                }
            }
        }
    }
}
