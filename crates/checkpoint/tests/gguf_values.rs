//! What a GGUF file's names, values and metadata become.

mod common;

use common::{Gguf, Q8_0, sizes, tiny};
use firstdiff_checkpoint::{Error, Format, GgufFault, Storage};
use serde_json::{Value, json};

fn config_value(gguf: &Gguf, key: &str) -> Option<Value> {
    gguf.open().config().get(key).cloned()
}

#[test]
fn metadata_become_the_keys_of_config_json_and_remember_their_own() {
    let checkpoint = tiny("qwen2").open();
    let config = checkpoint.config();
    let expected = json!({
        "attention_bias": true, "head_dim": 4, "hidden_size": 8, "intermediate_size": 16,
        "max_position_embeddings": 64, "model_type": "qwen2", "num_attention_heads": 2,
        "num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 0.5, "rope_theta": 500.0,
        "tie_word_embeddings": true, "vocab_size": 3,
    });
    let all: serde_json::Map<String, Value> =
        config.iter().map(|(key, value, _)| (key.to_owned(), value.clone())).collect();
    assert_eq!(Value::Object(all), expected);
    assert_eq!(config.origin("rope_theta"), Some("qwen2.rope.freq_base"));
    assert_eq!(config.model_type().unwrap(), "qwen2");
    assert_eq!(checkpoint.format(), Format::Gguf);
}

#[test]
fn families_are_spelled_as_in_config_json() {
    for (arch, model_type) in [("qwen3moe", "qwen3_moe"), ("gemma3", "gemma3_text"), ("llama", "llama")] {
        assert_eq!(config_value(&sizes(arch), "model_type"), Some(json!(model_type)));
    }
    let mixtral = sizes("llama").u32("llama.expert_count", 8);
    assert_eq!(config_value(&mixtral, "model_type"), Some(json!("mixtral")));
}

#[test]
fn what_a_file_leaves_out_is_what_llama_cpp_takes() {
    let file = Gguf::default()
        .str("general.architecture", "qwen3")
        .u32("qwen3.embedding_length", 8)
        .u32("qwen3.attention.head_count", 2);
    for (key, value) in
        [("num_key_value_heads", json!(2)), ("head_dim", json!(4)), ("rope_theta", json!(10000.0))]
    {
        assert_eq!(config_value(&file, key), Some(value), "{key}");
    }
}

#[test]
fn an_output_matrix_unties_the_embeddings() {
    let file = tiny("llama").f32_tensor("output.weight", &[8, 3], &[0.0; 24]);
    assert_eq!(config_value(&file, "tie_word_embeddings"), Some(json!(false)));
    assert!(file.open().tensor("lm_head.weight").is_some());
}

#[test]
fn frequency_divisors_keep_their_name_and_are_announced() {
    let checkpoint = tiny("llama").f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]).open();
    assert_eq!(checkpoint.config().get("rope_freqs"), Some(&json!(true)));
    let divisors = checkpoint.tensor("rope_freqs.weight").unwrap();
    assert_eq!(checkpoint.mapped_f32(divisors), Some(&[1.0, 8.0][..]));
}

#[test]
fn numbers_given_per_layer_must_agree() {
    let same = Gguf::default()
        .str("general.architecture", "llama")
        .i32s("llama.attention.head_count_kv", &[3, 3, 3]);
    assert_eq!(config_value(&same, "num_key_value_heads"), Some(json!(3)));
    let other =
        Gguf::default().str("general.architecture", "llama").i32s("llama.attention.head_count_kv", &[3, 4]);
    let Err(Error::Gguf { fault, .. }) = other.try_open() else { panic!("accepted") };
    assert_eq!(fault, GgufFault::PerLayer { key: "llama.attention.head_count_kv".into() });
}

#[test]
fn keys_and_values_of_different_size_are_refused() {
    let file = sizes("llama").u32("llama.attention.key_length", 4).u32("llama.attention.value_length", 8);
    let Err(Error::Gguf { fault, .. }) = file.try_open() else { panic!("accepted") };
    assert_eq!(fault, GgufFault::HeadLengths { keys: 4, values: 8 });
}

#[test]
fn a_rotation_of_part_of_a_head_is_a_factor() {
    let file = sizes("llama").u32("llama.rope.dimension_count", 2);
    assert_eq!(config_value(&file, "partial_rotary_factor"), Some(json!(0.5)));
    assert_eq!(
        config_value(&sizes("llama").u32("llama.rope.dimension_count", 4), "partial_rotary_factor"),
        None
    );
}

#[test]
fn linear_scaling_keeps_its_factor_and_none_is_absent() {
    let scaled = |kind: &str| {
        sizes("llama").str("llama.rope.scaling.type", kind).f32("llama.rope.scaling.factor", 4.0)
    };
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    assert_eq!(config_value(&scaled("linear"), "rope_scaling"), Some(linear.clone()));
    assert_eq!(config_value(&scaled("none"), "rope_scaling"), None);
    assert_eq!(
        config_value(&sizes("llama").f32("llama.rope.scale_linear", 4.0), "rope_scaling"),
        Some(linear)
    );
}

#[test]
fn yarn_carries_the_amplitude_that_llama_cpp_computes() {
    let file = sizes("qwen2")
        .str("qwen2.rope.scaling.type", "yarn")
        .f32("qwen2.rope.scaling.factor", 4.0)
        .f32("qwen2.rope.scaling.attn_factor", 0.5)
        .u32("qwen2.rope.scaling.original_context_length", 16);
    let scaling = config_value(&file, "rope_scaling").unwrap();
    assert_eq!(scaling["original_max_position_embeddings"], 16);
    assert_eq!(scaling["attention_factor"], json!(0.5 * (1.0 + 0.1 * 4f64.ln())));
    assert_eq!((&scaling["beta_fast"], &scaling["beta_slow"]), (&json!(32.0), &json!(1.0)));
}

#[test]
fn yarn_without_its_ramp_is_refused() {
    let file = sizes("qwen2")
        .str("qwen2.rope.scaling.type", "yarn")
        .f32("qwen2.rope.scaling.factor", 4.0)
        .f32("qwen2.rope.scaling.yarn_ext_factor", 0.0);
    let message = file.try_open().unwrap_err().to_string();
    assert!(message.contains("qwen2.rope.scaling.yarn_ext_factor is 0"), "{message}");
}

#[test]
fn queries_and_keys_of_llama_files_go_back_to_their_original_rows() {
    let checkpoint = tiny("llama").open();
    let rows = |name: &str| -> Vec<f32> {
        let values = checkpoint.read(checkpoint.tensor(name).unwrap()).unwrap();
        values.chunks(8).map(|row| row[0] / 8.0).collect()
    };
    // Stored row 2i+s of a head of four is the original row 2s+i.
    assert_eq!(rows("model.layers.0.self_attn.q_proj.weight"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(rows("model.layers.0.self_attn.k_proj.weight"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(rows("model.layers.0.self_attn.v_proj.weight"), [0.0, 1.0, 2.0, 3.0]);
    let bias = checkpoint.tensor("model.layers.0.self_attn.q_proj.bias").unwrap();
    assert_eq!(checkpoint.read(bias).unwrap(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(checkpoint.mapped_f32(bias), None, "a permuted tensor cannot be read where it lies");
}

#[test]
fn other_architectures_keep_their_rows() {
    let checkpoint = tiny("qwen2").open();
    let query = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!(query.source_name, "blk.0.attn_q.weight");
    let expected: Vec<f32> = (0..64).map(|n| n as f32).collect();
    assert_eq!(checkpoint.read(query).unwrap(), expected);
    assert_eq!(checkpoint.mapped_f32(query), Some(&expected[..]));
}

#[test]
fn rows_that_no_head_count_divides_are_refused() {
    let file = sizes("llama").f32_tensor("blk.0.attn_q.weight", &[1, 7], &[0.0; 7]);
    let Err(Error::Gguf { fault, .. }) = file.try_open() else { panic!("accepted") };
    assert_eq!(fault, GgufFault::Heads { tensor: "blk.0.attn_q.weight".into(), rows: 7, heads: 2 });
}

#[test]
fn any_range_of_rows_is_what_the_whole_tensor_has_there() {
    for arch in ["llama", "qwen2"] {
        let checkpoint = tiny(arch).open();
        for tensor in checkpoint.tensors() {
            let (all, len) = (checkpoint.read(tensor).unwrap(), tensor.row_len());
            for from in 0..tensor.rows() {
                for to in from..=tensor.rows() {
                    let mut out = vec![f32::NAN; (to - from) * len];
                    checkpoint.read_rows(tensor, from..to, &mut out).unwrap();
                    assert_eq!(out, all[from * len..to * len]);
                }
            }
        }
    }
}

#[test]
fn rows_and_outputs_that_do_not_fit_are_refused() {
    let checkpoint = tiny("llama").open();
    let tensor = checkpoint.tensor("model.embed_tokens.weight").unwrap();
    let mut out = [0.0; 8];
    assert!(matches!(checkpoint.read_rows(tensor, 3..4, &mut out), Err(Error::Rows { rows: 3, .. })));
    #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
    let reversed = checkpoint.read_rows(tensor, 2..1, &mut out);
    assert!(matches!(reversed, Err(Error::Rows { .. })));
    let short = checkpoint.read_rows(tensor, 0..2, &mut out);
    assert!(matches!(short, Err(Error::OutputLength { wanted: 16, given: 8, .. })));
}

#[test]
fn a_tensor_of_a_larger_checkpoint_is_refused() {
    let large = tiny("llama").f32_tensor("x", &[100_000], &vec![0.0; 100_000]).open();
    let error = tiny("llama").open().read(large.tensor("x").unwrap()).unwrap_err();
    assert!(matches!(error, Error::ForeignTensor { .. }));
}

#[test]
fn quantised_tensors_with_one_axis_have_rows_of_one() {
    let block = [&[0x00, 0x3c][..], &(0..32).collect::<Vec<u8>>()].concat();
    let checkpoint = sizes("llama").tensor("t", &[32], Q8_0, &block).open();
    let tensor = checkpoint.tensor("t").unwrap();
    assert_eq!((tensor.rows(), tensor.row_len(), tensor.storage), (32, 1, Storage::Q8_0));
    let mut out = [0.0; 3];
    checkpoint.read_rows(tensor, 5..8, &mut out).unwrap();
    assert_eq!(out, [5.0, 6.0, 7.0]);
}

#[test]
fn expert_tensors_have_a_row_per_expert_and_output() {
    let values: Vec<f32> = (0..24).map(|n| n as f32).collect();
    let checkpoint = sizes("qwen3moe").f32_tensor("blk.0.ffn_up_exps.weight", &[4, 3, 2], &values).open();
    let tensor = checkpoint.tensor("model.layers.0.mlp.experts.up_proj.weight").unwrap();
    assert_eq!((&tensor.shape[..], tensor.rows(), tensor.row_len()), (&[2, 3, 4][..], 6, 4));
    let mut out = [0.0; 4];
    checkpoint.read_rows(tensor, 4..5, &mut out).unwrap();
    assert_eq!(out, [16.0, 17.0, 18.0, 19.0]);
}

#[test]
fn tensors_are_sorted_and_found_by_name() {
    let checkpoint = tiny("llama").open();
    let names: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert!(names.is_sorted());
    assert!(names.iter().all(|name| checkpoint.tensor(name).is_some_and(|tensor| tensor.name == *name)));
    assert!(checkpoint.tensor("blk.0.attn_q.weight").is_none());
}

#[test]
fn a_fingerprint_depends_on_values_names_and_shapes_and_on_nothing_else() {
    let base = sizes("llama").f32_tensor("t", &[4, 2], &[1.0; 8]);
    let mut other = [1.0; 8];
    other[7] = 2.0;
    let fingerprint = base.open().fingerprint();
    assert_eq!(fingerprint.len(), 16);
    assert_eq!(base.clone().str("general.name", "another").open().fingerprint(), fingerprint);
    for changed in [
        sizes("llama").f32_tensor("t", &[4, 2], &other),
        sizes("llama").f32_tensor("u", &[4, 2], &[1.0; 8]),
        sizes("llama").f32_tensor("t", &[2, 4], &[1.0; 8]),
        base.clone().f32_tensor("u", &[1], &[0.0]),
    ] {
        assert_ne!(changed.open().fingerprint(), fingerprint);
    }
}

#[test]
fn a_checkpoint_can_be_shared_between_threads() {
    let checkpoint = tiny("llama").open();
    let tensor = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    let expected = checkpoint.read(tensor).unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| checkpoint.read(tensor).unwrap())).collect();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), expected);
        }
    });
}
