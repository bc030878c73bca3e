//! What traces may say, end to end: the reference plays a right engine that stores f32, and its recording is written as
//! real engines write theirs.

use std::collections::BTreeMap;
use std::path::Path;

use firstdiff_checkpoint::Checkpoint;
use firstdiff_compare::{Check, CheckOptions, Error, Verdict, check};
use firstdiff_model::Model;
use firstdiff_reference::{Computed, Executor, Fork, KeyLabel, KeyValues, StepInput, Taps, Weights};
use firstdiff_tensor::{Float, Tensor};
use firstdiff_trace::{Manifest, Trace, Writer};
use serde_json::{Value, json};

type Taken = BTreeMap<String, Tensor<f64>>;

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cases/models/llama");
    Model::new(Checkpoint::open(&path).unwrap()).unwrap()
}

/// Takes every value, as it is stored in f32, and goes on from there.
struct Recorder<'m> {
    model: &'m Model,
    steps: Vec<Taken>,
}

impl Taps<f64> for Recorder<'_> {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, c: Computed<f64>) -> Result<Option<Tensor<f64>>, firstdiff_reference::Error> {
        let data = c.exact.data().iter().map(|x| f64::from(*x as f32)).collect();
        let stored = Tensor::new(c.exact.shape().to_vec(), data).unwrap();
        self.steps[c.step].insert(self.model.program.ops[c.op].tap.clone(), stored.clone());
        Ok(Some(stored))
    }
}

/// What a right engine computes in these steps.
fn engine(model: &Model, steps: &[StepInput]) -> Vec<Taken> {
    let weights = Weights::new(&model.checkpoint, Float::F32, 0);
    let executor =
        Executor { program: &model.program, weights: &weights, arithmetic: None, lanes: 0, progress: None };
    let mut recorder = Recorder { model, steps: vec![Taken::new(); steps.len()] };
    executor.execute(steps, &mut KeyValues::new(model.program.ops.len()), &mut recorder).unwrap();
    recorder.steps
}

/// One step to write.
#[derive(Clone, Default)]
struct Step {
    rows: StepInput,
    taps: Taken,
    about: Vec<(&'static str, Vec<i64>)>,
}

fn recorded(model: &Model, steps: &[StepInput]) -> Vec<Step> {
    let taken = engine(model, steps);
    steps.iter().zip(taken).map(|(rows, taps)| Step { rows: rows.clone(), taps, about: vec![] }).collect()
}

fn written(steps: &[Step], about: Value) -> (tempfile::TempDir, Result<Trace, firstdiff_trace::Error>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let mut manifest = json!({"format": "firstdiff.trace/1", "producer": {"name": "test"}, "arithmetic": {"activations": "f32"}});
    for (key, value) in about.as_object().unwrap() {
        manifest[key] = value.clone();
    }
    let manifest: Manifest = serde_json::from_value(manifest).unwrap();
    let mut writer = Writer::create(&path, manifest).unwrap();
    for step in steps {
        let positions: Vec<i64> = step.rows.positions.iter().map(|p| i64::from(*p)).collect();
        let mut out = writer.step(&step.rows.token_ids, &positions);
        if step.rows.sequence.iter().any(|q| *q != 0) {
            out.describe("sequence", &step.rows.sequence);
        }
        let fork =
            |f: &Fork| firstdiff_trace::Fork { sequence: f.sequence, parent: f.parent, length: f.length };
        if !step.rows.forks.is_empty() {
            out.forks(&step.rows.forks.iter().map(fork).collect::<Vec<_>>());
        }
        step.about.iter().for_each(|(name, values)| out.describe(name, values));
        step.taps.iter().for_each(|(name, value)| out.tap(name, value, false));
        out.finish().unwrap();
    }
    writer.finish().unwrap();
    let trace = Trace::open(&path);
    (folder, trace)
}

fn checked(model: &Model, steps: &[Step], about: Value) -> Result<Check, Error> {
    let (_folder, trace) = written(steps, about);
    check(&trace?, model, &CheckOptions::default())
}

fn agrees(model: &Model, steps: &[Step], about: Value) -> Check {
    let result = checked(model, steps, about).unwrap();
    let wrong: Vec<_> = result.findings.iter().map(|f| (&f.tap, f.step, &f.place, f.ratio)).collect();
    assert!(result.verdict == Verdict::Agrees, "{:?} {wrong:?} {:?}", result.verdict, result.notes);
    result
}

fn left(check: &Check) -> Vec<(String, Vec<usize>)> {
    check.not_compared.iter().map(|n| (n.taps.join(" "), n.steps.clone())).collect()
}

fn keep(steps: &mut [Step], keep: impl Fn(&str) -> bool) {
    steps.iter_mut().for_each(|s| s.taps.retain(|name, _| keep(name)));
}

/// A prompt of eight tokens and four more, one at a time; positions from 0.
fn decoding() -> Vec<StepInput> {
    let ids: Vec<i64> = (0..12).map(|i| (i * 37 + 11) % 96).collect();
    let mut steps = vec![StepInput::new(&ids[..8], 0)];
    steps.extend((8..12).map(|p| StepInput::new(&ids[p..=p], p as u32)));
    steps
}

fn batch(rows: &[(i64, u32)]) -> StepInput {
    StepInput {
        token_ids: rows.iter().map(|(q, p)| (q * 29 + i64::from(*p) * 37 + 11) % 96).collect(),
        positions: rows.iter().map(|r| r.1).collect(),
        sequence: rows.iter().map(|r| r.0).collect(),
        ..StepInput::default()
    }
}

fn rows(t: &Tensor<f64>, rows: &[usize]) -> Tensor<f64> {
    t.select(0, rows)
}

#[test]
fn everything_recorded_agrees() {
    let model = model();
    let check = agrees(&model, &recorded(&model, &decoding()), json!({}));
    assert!(check.not_compared.is_empty());
    assert!(check.coverage.missing.is_empty());
}

#[test]
fn what_depends_on_keys_that_no_step_shows_is_not_compared() {
    let model = model();
    let mut steps = recorded(&model, &decoding())[1..].to_vec();
    keep(&mut steps, |name| {
        !name.ends_with("_cache") && !name.contains("attn_scores") && !name.contains("attn_probs")
    });
    let check = agrees(&model, &steps, json!({}));
    assert_eq!(left(&check)[0], ("layers.*.attn_heads".into(), vec![0, 1, 2, 3]));
    assert!(check.not_compared[0].why.contains("begins at position 8"), "{}", check.not_compared[0].why);
    assert!(check.coverage.taps > 100);

    // Products are judged all the same.
    let q = steps[1].taps.get_mut("layers.2.q_proj").unwrap();
    q.data_mut()[5] += 1.0;
    let wrong = checked(&model, &steps, json!({})).unwrap();
    assert_eq!((wrong.findings[0].tap.as_str(), wrong.findings[0].step), ("layers.2.q_proj", 1));

    // Logits alone follow from nothing that is known.
    keep(&mut steps, |name| name == "logits");
    let nothing = checked(&model, &steps, json!({})).unwrap();
    assert_eq!(nothing.verdict, Verdict::Unmeasured);
    assert_eq!(left(&nothing), [("logits".into(), vec![0, 1, 2, 3])]);
}

#[test]
fn a_recorded_cache_gives_the_keys_that_no_step_shows() {
    let model = model();
    let mut steps = recorded(&model, &decoding())[1..].to_vec();
    // Once is enough: later steps remember them.
    for (number, step) in steps.iter_mut().enumerate() {
        step.taps.retain(|name, _| number == 0 || !name.ends_with("_cache"));
    }
    let check = agrees(&model, &steps, json!({}));
    assert!(
        left(&check).iter().all(|(taps, _)| taps == "layers.*.k_cache layers.*.v_cache"),
        "{:?}",
        left(&check)
    );
    let heads = checked(&model, &steps, json!({})).unwrap();
    assert!(!heads.coverage.missing.contains(&"layers.*.attn_heads".to_string()));

    let cache = steps[0].taps.get_mut("layers.1.k_cache").unwrap();
    let last = cache.len() - 1;
    cache.data_mut()[last] += 0.5;
    let wrong = checked(&model, &steps, json!({})).unwrap();
    assert_eq!(wrong.findings[0].tap, "layers.1.k_cache", "the newest rows are judged");
}

#[test]
fn a_cache_may_hold_its_keys_in_any_order_and_leave_some_out() {
    let model = model();
    let ring =
        |positions: &[u32]| positions.iter().map(|&position| KeyLabel { sequence: 0, position }).collect();
    let mut steps = decoding();
    // The first two are kept, and a ring of five.
    for (step, held) in steps[1..].iter_mut().zip([[0, 1, 8, 4, 5, 6, 7], [0, 1, 8, 9, 5, 6, 7]]) {
        step.keys.step = Some(ring(&held));
    }
    steps.truncate(3);
    let mut engine = recorded(&model, &steps);
    for step in &mut engine {
        if let Some(keys) = step.rows.keys.step.take() {
            step.about.push(("key_position", keys.iter().map(|k| i64::from(k.position)).collect()));
        }
    }
    let check = agrees(&model, &engine, json!({}));
    assert!(check.not_compared.is_empty());

    // A slot that is read in another's place is wrong.
    let mut swapped = engine.clone();
    swapped[2].about = vec![("key_position", vec![0, 1, 9, 8, 5, 6, 7])];
    assert_eq!(checked(&model, &swapped, json!({})).unwrap().findings[0].tap, "layers.0.k_cache");

    // Without a word about the order: reported, and not compared.
    engine.iter_mut().for_each(|s| s.about.clear());
    let check = agrees(&model, &engine, json!({}));
    let why = &check.not_compared[0].why;
    assert!(why.contains("another order") && why.contains("key_position"), "{why}");
    assert!(left(&check)[0].0.contains("layers.*.k_cache"));

    let mut empty = engine.clone();
    empty[2].about = vec![("key_position", vec![0, 1, -1, 9, 5, 6, 7])];
    let error = checked(
        &model,
        &[empty[0].clone(), {
            let mut s = empty[2].clone();
            s.about[0].1.pop();
            s
        }],
        json!({}),
    );
    assert!(error.unwrap_err().to_string().contains("key_position lists 6"));
}

#[test]
fn caches_of_a_batch_are_read_by_their_labels() {
    let model = model();
    let mut second = batch(&[(0, 3), (1, 2)]);
    let labels: Vec<KeyLabel> = (0..4)
        .map(|position| KeyLabel { sequence: 0, position })
        .chain((0..3).map(|position| KeyLabel { sequence: 1, position }))
        .collect();
    second.keys.step = Some(labels.clone().into());
    let steps = [batch(&[(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]), second];
    let mut engine = recorded(&model, &steps);
    engine[1].about = vec![
        ("key_sequence", labels.iter().map(|l| l.sequence).collect()),
        ("key_position", labels.iter().map(|l| i64::from(l.position)).collect()),
    ];
    let check = agrees(&model, &engine, json!({}));
    assert!(check.not_compared.is_empty());
}

#[test]
fn rows_of_logits_are_the_last_of_each_sequence_or_those_that_are_listed() {
    let model = model();
    let steps = [batch(&[(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)])];
    let mut engine = recorded(&model, &steps);
    let cut = |step: &mut Step, which: &[usize]| {
        for tap in ["final_norm", "logits"] {
            let some = rows(&step.taps[tap], which);
            step.taps.insert(tap.into(), some);
        }
    };
    let whole = engine[0].clone();
    cut(&mut engine[0], &[2, 4, 5]);
    agrees(&model, &engine, json!({}));

    let mut other = [whole.clone()];
    cut(&mut other[0], &[1, 4, 5]);
    assert_eq!(checked(&model, &other, json!({})).unwrap().findings[0].tap, "final_norm");
    other[0].about = vec![("logits_rows", vec![1, 4, 5])];
    agrees(&model, &other, json!({}));

    let mut two = [whole];
    cut(&mut two[0], &[4, 5]);
    let error = checked(&model, &two, json!({})).unwrap_err().to_string();
    assert!(error.contains("logits_rows") && error.contains("2 of 6 rows"), "{error}");
}

#[test]
fn each_sequence_of_a_batch_has_its_chosen_token() {
    let model = model();
    let steps = [batch(&[(0, 0), (0, 1), (1, 0)])];
    let mut engine = recorded(&model, &steps);
    let best = |row: usize| {
        let logits = &engine[0].taps["logits"];
        let row = logits.row(row);
        (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i64
    };
    let right = vec![best(1), best(2)];
    engine[0].about = vec![("sampled", right.clone())];
    assert_eq!(agrees(&model, &engine, json!({})).tokens.unwrap().compared, 2);
    engine[0].about = vec![("sampled", vec![-1, right[1]])];
    assert_eq!(agrees(&model, &engine, json!({})).tokens.unwrap().compared, 1);
    engine[0].about = vec![("sampled", vec![right[0], (right[1] + 1) % 96])];
    let wrong = checked(&model, &engine, json!({})).unwrap();
    assert_eq!(wrong.tokens.unwrap().not_following[0].sequence, 1);
}

#[test]
fn a_sequence_that_forks_has_the_keys_of_its_parent() {
    let model = model();
    let mut fork = batch(&[(1, 3), (1, 4)]);
    fork.forks = vec![Fork { sequence: 1, parent: 0, length: 3 }];
    let steps = [batch(&[(0, 0), (0, 1), (0, 2), (0, 3)]), fork, batch(&[(1, 5)])];
    let engine = recorded(&model, &steps);
    assert_eq!(engine[1].taps["layers.0.k_cache"].rows(), 5);
    let check = agrees(&model, &engine, json!({}));
    assert!(check.not_compared.is_empty());

    let mut wrong = engine;
    wrong[1].rows.forks[0].length = 2;
    assert!(
        checked(&model, &wrong, json!({})).unwrap().not_compared[0]
            .why
            .contains("sequence 1 jumps from position 1 to 3")
    );
}

#[test]
fn other_names_fused_products_and_other_layouts_are_understood() {
    let model = model();
    let mut engine = recorded(&model, &decoding());
    for step in &mut engine {
        for layer in 0..4 {
            let at = |tap: &str| format!("layers.{layer}.{tap}");
            let mut join = |parts: &[&str], name: &str| {
                let parts: Vec<Tensor<f64>> =
                    parts.iter().map(|p| step.taps.remove(&at(p)).unwrap()).collect();
                let rows = parts[0].rows();
                let data: Vec<f64> =
                    (0..rows).flat_map(|r| parts.iter().flat_map(move |p| p.row(r).to_vec())).collect();
                step.taps.insert(at(name), Tensor::new([rows, data.len() / rows], data).unwrap());
            };
            join(&["q_proj", "k_proj", "v_proj"], "qkv_proj");
            join(&["gate_proj", "up_proj"], "gate_up_proj");
            let mut rename = |tap: &str, name: String| {
                let value = step.taps.remove(&at(tap)).unwrap();
                step.taps.insert(name, value);
            };
            rename("attn_out", format!("model.layers.{layer}.self_attn.o_proj"));
            rename("mlp_out", format!("ffn_out-{layer}"));
            let q = step.taps.remove(&at("q_rope")).unwrap();
            step.taps.insert(at("q_rope"), q.permute(&[1, 0, 2]));
        }
    }
    let check = agrees(&model, &engine, json!({"axes": {"layers.*.q_rope": "HTD"}}));
    assert!(check.coverage.missing.is_empty() && check.coverage.unknown.is_empty(), "{:?}", check.coverage);
}

#[test]
fn neighbouring_rotary_pairs_are_put_back() {
    let model = model();
    let mut engine = recorded(&model, &decoding());
    for (name, value) in engine.iter_mut().flat_map(|s| &mut s.taps) {
        if ["q_proj", "k_proj", "q_rope", "k_rope", "k_cache"].iter().any(|tap| name.ends_with(tap)) {
            for head in value.data_mut().chunks_mut(16) {
                let halves = head.to_vec();
                (0..8).for_each(|i| (head[2 * i], head[2 * i + 1]) = (halves[i], halves[i + 8]));
            }
        }
    }
    agrees(&model, &engine, json!({"rope_order": "neighbours"}));
    assert_eq!(checked(&model, &engine, json!({})).unwrap().verdict, Verdict::Diverges);
}

#[test]
fn what_a_rank_holds_a_part_of_is_not_compared() {
    let model = model();
    let mut engine = recorded(&model, &decoding());
    for (name, value) in engine.iter_mut().flat_map(|s| &mut s.taps) {
        let half =
            |t: &Tensor<f64>, axis: usize| t.select(axis, &(0..t.shape()[axis] / 2).collect::<Vec<_>>());
        if ["q_proj", "gate_proj", "up_proj", "mlp_act"].iter().any(|tap| name.ends_with(tap)) {
            *value = half(value, 1);
        }
        if name.ends_with("attn_out") || name.ends_with("mlp_out") {
            value.data_mut().iter_mut().for_each(|x| *x *= 0.5);
        }
    }
    let check = agrees(&model, &engine, json!({"rank": {"tp": [0, 2]}}));
    let taps = "layers.*.attn_out layers.*.gate_proj layers.*.mlp_act layers.*.mlp_out layers.*.q_proj layers.*.up_proj";
    assert_eq!(left(&check), [(taps.to_string(), vec![0, 1, 2, 3, 4])]);
    assert!(check.not_compared[0].why.contains("rank 0 of 2"));
}

#[test]
fn what_is_declared_and_not_modelled_is_not_compared() {
    let model = model();
    let mut engine = recorded(&model, &decoding());
    // An engine that does something to the inputs of its products.
    for (name, value) in engine.iter_mut().flat_map(|s| &mut s.taps) {
        if name.ends_with("up_proj") {
            value.data_mut().iter_mut().for_each(|x| *x *= 1.01);
        }
    }
    keep(&mut engine, |name| {
        !name.ends_with("mlp_act") && !name.ends_with("mlp_out") && !name.ends_with("out")
    });
    let check =
        agrees(&model, &engine, json!({"arithmetic": {"activations": "f32", "matmul_inputs": "nvfp4"}}));
    assert!(left(&check)[0].0.contains("layers.*.up_proj") && !left(&check)[0].0.contains("q_rope"));
    assert!(check.not_compared[0].why.contains("NVFP4"));

    let beams = recorded(&model, &decoding());
    let check = agrees(&model, &beams, json!({"sampling": {"num_beams": 3}}));
    assert!(
        check
            .not_compared
            .iter()
            .any(|n| n.why.contains("3 beams") && n.taps.contains(&"layers.*.k_cache".into()))
    );
}

#[test]
fn columns_beyond_the_vocabulary_are_left_out() {
    let model = model();
    let mut engine = recorded(&model, &decoding());
    for step in &mut engine {
        let logits = &step.taps["logits"];
        let wide: Vec<f64> = (0..logits.rows()).flat_map(|r| [logits.row(r), &[99.0; 32]].concat()).collect();
        step.taps.insert("logits".into(), Tensor::new([logits.rows(), 128], wide).unwrap());
    }
    let check = agrees(&model, &engine, json!({}));
    assert!(check.notes.iter().any(|n| n.contains("32 columns") && n.contains("beyond the vocabulary")));
    let last = engine.last_mut().unwrap();
    last.about = vec![("sampled", vec![100])];
    let chosen = checked(&model, &engine, json!({})).unwrap();
    assert_eq!(chosen.verdict, Verdict::Diverges, "one of them was chosen");
}

#[test]
fn a_trace_without_steps_is_unmeasured_and_says_so() {
    let check = checked(&model(), &[], json!({})).unwrap();
    assert_eq!(check.verdict, Verdict::Unmeasured);
    assert!(check.notes.iter().any(|n| n.contains("no steps")));
}

#[test]
fn shapes_that_do_not_fit_are_explained() {
    let model = model();
    let engine = recorded(&model, &decoding());
    let with = |tap: &str, shape: &[usize]| {
        let mut steps = engine.clone();
        steps[0].taps.insert(tap.into(), Tensor::zeros(shape.to_vec()));
        checked(&model, &steps, json!({})).unwrap_err().to_string()
    };
    for (tap, shape, says) in [
        ("embed", &[9, 64][..], "is a BOS token missing from token_ids"),
        ("layers.0.attn_norm", &[2, 8, 64], "a batch: flatten it and give `sequence`"),
        ("layers.0.attn_norm", &[2, 4, 64], "a batch: flatten it and give `sequence`"),
        ("layers.0.k_cache", &[11, 2, 16], "Record key_sequence and key_position"),
        ("layers.0.attn_norm", &[8, 63], "is the trace of this model?"),
    ] {
        let error = with(tap, shape);
        assert!(error.contains(says) && error.contains(tap), "{error}");
    }
}
