//! Every kernel beside the reference's operation, on a GPU: `cargo test -p firstdiff-engine --test gpu -- --ignored`.
//!
//! A tiny model with random weights is run with every tap on; each operation is then replayed by the reference from
//! the engine's own inputs, as `check` does for any engine.

use std::path::Path;

use firstdiff_checkpoint::Checkpoint;
use firstdiff_compare::{Check, CheckOptions, Verdict, check};
use firstdiff_engine::cuda::{Engine, Error, Options, Step, Wanted};
use firstdiff_engine::sampler::{SampleOptions, Sampler};
use firstdiff_model::Model;
use firstdiff_trace::{Manifest, Producer, Trace, Writer};

/// What a tiny model looks like.
#[derive(Clone, Copy)]
struct Tiny {
    family: &'static str,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    more: &'static str,
}

const LLAMA: Tiny =
    Tiny { family: "llama", hidden: 64, ffn: 80, heads: 4, kv_heads: 2, head_dim: 16, vocab: 96, more: "" };
const LAYERS: usize = 3;

/// Names and shapes of all tensors.
fn tensors(t: Tiny) -> Vec<(String, Vec<usize>)> {
    let (q, k) = (t.heads * t.head_dim, t.kv_heads * t.head_dim);
    let all_biases = t.more.contains("attention_bias");
    let mut out = vec![
        ("model.embed_tokens.weight".to_string(), vec![t.vocab, t.hidden]),
        ("model.norm.weight".to_string(), vec![t.hidden]),
        ("lm_head.weight".to_string(), vec![t.vocab, t.hidden]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            out.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[t.hidden]);
        add("post_attention_layernorm.weight", &[t.hidden]);
        for (name, rows) in [("q", q), ("k", k), ("v", k)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, t.hidden]);
            if t.family == "qwen2" || all_biases {
                add(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        add("self_attn.o_proj.weight", &[t.hidden, q]);
        if all_biases {
            add("self_attn.o_proj.bias", &[t.hidden]);
        }
        if t.family == "qwen3" {
            add("self_attn.q_norm.weight", &[t.head_dim]);
            add("self_attn.k_norm.weight", &[t.head_dim]);
        }
        add("mlp.gate_proj.weight", &[t.ffn, t.hidden]);
        add("mlp.up_proj.weight", &[t.ffn, t.hidden]);
        add("mlp.down_proj.weight", &[t.hidden, t.ffn]);
    }
    out
}

/// Writes `config.json` and a file of random weights, and opens them.
fn model(folder: &Path, t: Tiny) -> Model {
    let mut state = 7u64;
    // Roughly normal, with variance 1.
    let mut normal = || {
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..12).map(|_| uniform()).sum::<f32>() - 6.0
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors(t) {
        let (scale, shift) = match shape[..] {
            [_] if name.contains("norm") => (0.3, 1.0),
            [_] => (0.3, 0.0),
            _ if name.contains("embed") => (1.0, 0.0),
            _ => (1.2 / (shape[1] as f32).sqrt(), 0.0),
        };
        let start = data.len();
        for _ in 0..shape.iter().product() {
            data.extend((normal() * scale + shift).to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    let config = format!(
        r#"{{"model_type":"{}","hidden_size":{},"intermediate_size":{},"num_hidden_layers":{LAYERS},
            "num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},"vocab_size":{},
            "max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0{}}}"#,
        t.family, t.hidden, t.ffn, t.heads, t.kv_heads, t.head_dim, t.vocab, t.more
    );
    std::fs::write(folder.join("config.json"), config).unwrap();
    Model::new(Checkpoint::open(folder).unwrap()).unwrap()
}

fn load(model: &Model, context: usize) -> Engine {
    Engine::load(model, &Options { context, ..Options::default() }).unwrap()
}

fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    (1..=n).map(|i| (i * 31 % vocab) as u32).collect()
}

/// A prompt, then single tokens.
fn prompt_and_steps(prompt: usize, steps: usize, vocab: usize) -> Vec<Vec<u32>> {
    let all = tokens(prompt + steps, vocab);
    let mut out = vec![all[..prompt].to_vec()];
    out.extend(all[prompt..].iter().map(|t| vec![*t]));
    out
}

/// Records steps with every tap and gives the verdict; `spoil` may change values before they are written.
fn judged(
    model: &Model,
    engine: &mut Engine,
    folder: &Path,
    steps: &[Vec<u32>],
    spoil: impl Fn(&mut Step),
) -> Check {
    let all = Wanted::matching(&model.program, &["all"]);
    let mut manifest = Manifest::new(Producer { name: "cuda".into(), version: "test".into() });
    manifest.arithmetic = Some(engine.arithmetic());
    let mut writer = Writer::create(folder, manifest).unwrap();
    engine.rewind(0);
    for tokens in steps {
        let first = engine.position() as i64;
        let mut step = match tokens[..] {
            [token] => engine.decode(token, &all).unwrap(),
            _ => engine.prefill(tokens, &all).unwrap(),
        };
        spoil(&mut step);
        let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
        let positions: Vec<i64> = (first..).take(ids.len()).collect();
        let mut entry = writer.step(&ids, &positions);
        for tap in step.taps {
            entry.bytes(&tap.name, tap.dtype, &tap.shape, tap.bytes);
        }
        entry.finish().unwrap();
    }
    writer.finish().unwrap();
    let trace = Trace::open(folder).unwrap();
    check(&trace, model, &CheckOptions::default()).unwrap()
}

fn agrees(t: Tiny, steps: &[Vec<u32>]) {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), t);
    let mut engine = load(&model, 600);
    let result = judged(&model, &mut engine, &folder.path().join("trace"), steps, |_| {});
    let wrong: Vec<String> = result.findings.iter().map(|f| format!("{} ({:?})", f.tap, f.ratio)).collect();
    assert_eq!(result.verdict, Verdict::Agrees, "{wrong:?}");
    let missing = &result.coverage.missing;
    assert!(missing.is_empty(), "no value for {missing:?}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_operation_of_a_prompt_and_of_decoding_agrees_with_the_reference() {
    let qwen3 = Tiny { family: "qwen3", head_dim: 24, ..LLAMA };
    let qwen2 = Tiny { family: "qwen2", head_dim: 64, heads: 7, kv_heads: 1, ..LLAMA };
    let wide = Tiny { hidden: 1032, ffn: 2056, head_dim: 128, vocab: 1000, ..LLAMA };
    // Of 132 blocks, one has a warp with a slot of the last query's row and the first key's, another one of the last key's
    // and the first value's. No matrix fills its allocation: the next one does not follow.
    let crossing = Tiny { hidden: 72, head_dim: 88, heads: 15, kv_heads: 3, ..LLAMA };
    let biased = Tiny { more: r#","attention_bias":true"#, ..LLAMA };
    for t in [LLAMA, qwen3, qwen2, wide, crossing, biased] {
        agrees(t, &prompt_and_steps(70, 5, t.vocab));
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn decoding_from_an_empty_cache_agrees() {
    agrees(LLAMA, &tokens(40, 96).into_iter().map(|t| vec![t]).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn attention_split_over_blocks_agrees() {
    // 520 keys of 256 bytes: more slots than the warps of one block take at once.
    let t = Tiny { family: "qwen3", head_dim: 128, ..LLAMA };
    agrees(t, &prompt_and_steps(520, 3, t.vocab));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_window_hides_old_keys() {
    let more = r#","use_sliding_window":true,"sliding_window":7,"max_window_layers":1"#;
    agrees(Tiny { family: "qwen2", more, ..LLAMA }, &prompt_and_steps(40, 4, 96));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_value_moved_by_a_few_units_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), LLAMA);
    let spoil = |step: &mut Step| {
        for tap in step.taps.iter_mut().filter(|t| t.name == "layers.1.mlp_act") {
            for x in tap.bytes.as_chunks_mut::<2>().0 {
                *x = u16::from_le_bytes(*x).wrapping_add(4).to_le_bytes();
            }
        }
    };
    let steps = prompt_and_steps(20, 2, 96);
    let result = judged(&model, &mut load(&model, 64), &folder.path().join("trace"), &steps, spoil);
    assert_eq!(result.verdict, Verdict::Diverges);
    assert_eq!(result.findings[0].tap, "layers.1.mlp_act");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn matrices_are_read_as_the_checkpoint_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), LLAMA);
    let name = "model.layers.1.mlp.down_proj.weight";
    let stored = model.checkpoint.read(model.checkpoint.tensor(name).unwrap()).unwrap();
    let expected: Vec<f32> = stored.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
    assert_eq!(load(&model, 64).matrix(name).unwrap(), expected);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_same_tokens_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), LLAMA);
    let mut engine = load(&model, 400);
    let mut run = || {
        engine.rewind(0);
        engine.prefill(&tokens(20, 96), &Wanted::none()).unwrap();
        let made = engine.generate(3, 300, &mut |_| false).unwrap();
        (made, engine.logits().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    assert_eq!(run(), run());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_barrier_that_block_0_sets_back_lets_values_be_read_before_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), Tiny { family: "qwen3", ..LLAMA });
    let mut engine = load(&model, 64);
    engine.break_barrier().unwrap();
    let steps = prompt_and_steps(20, 6, 96);
    let result = judged(&model, &mut engine, &folder.path().join("trace"), &steps, |_| {});
    assert_eq!(result.verdict, Verdict::Diverges);
    let taps: Vec<&str> = result.findings.iter().map(|f| f.tap.as_str()).collect();
    assert!(taps.iter().any(|t| t.ends_with("k_cache") || t.ends_with("v_cache")), "{taps:?}");
}

#[test]
fn without_what_it_needs_the_engine_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), LLAMA);
    match Engine::load(&model, &Options::default()) {
        Ok(engine) => assert!(engine.device().multiprocessors > 0),
        Err(e @ (Error::NoDriver | Error::NoDevice { .. } | Error::NoNvrtc | Error::NoCublas)) => {
            let text = e.to_string();
            assert!(["driver", "GPU", "NVRTC", "cuBLAS"].iter().any(|word| text.contains(word)), "{text}");
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn memory_is_known_without_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), LLAMA);
    let of = |context| Engine::memory_needed(&model, &Options { device: 0, context }).unwrap();
    assert_eq!(of(200).cache, 2 * of(100).cache);
    assert_eq!(of(100).cache, LAYERS * 2 * 2 * 16 * 100 * 2);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_gpu_chooses_the_token_of_the_definition() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), Tiny { vocab: 1000, ..LLAMA });
    let mut engine = load(&model, 600);
    let options = [(0, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (5000, 0.3, 0.0), (90, 0.8, 0.05)];
    for (n, (top_k, top_p, min_p)) in options.into_iter().enumerate() {
        for (temperature, repetition_penalty) in [(1.0, 1.0), (0.4, 1.3), (0.0, 1.3)] {
            let seed = n as u64;
            let options = SampleOptions { temperature, top_k, top_p, min_p, repetition_penalty, seed };
            let prompt = tokens(20, 1000);
            let mut here = Sampler::new(options, prompt.iter().copied());
            let mut there = here.clone();
            engine.rewind(0);
            engine.prefill(&prompt, &Wanted::none()).unwrap();
            for _ in 0..30 {
                let expected = here.choose(&engine.logits().unwrap()).unwrap();
                assert_eq!(engine.choose(&mut there).unwrap(), expected, "{:?}", here.options());
                engine.decode(expected, &Wanted::none()).unwrap();
            }
        }
    }
}
