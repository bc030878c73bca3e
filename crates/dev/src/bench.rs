//! `cargo dev bench`: speed and memory, measured side by side in one run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use firstdiff_checkpoint::Checkpoint;
use firstdiff_compare::{CheckOptions, check};
use firstdiff_model::Model;
use firstdiff_reference::{Computed, Executor, Nothing, Session, Taps, Weights};
use firstdiff_tensor::{Float, Tensor};
use firstdiff_trace::{Manifest, Producer, StepWriter, Trace, Writer};

use crate::{bench_causes, bench_large, bench_verdicts, models, python, stories, workspace};

mod diff;

/// Measure.
#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 9, global = true)]
    rounds: usize,
    /// A GGUF file instead of the fetched SmolLM2-135M
    #[arg(long, global = true)]
    model: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Prefill and decode against transformers in float32, and the cost of recording
    Reference,
    /// `check` of a 64-token trace with every tap, in forward passes, and its peak memory
    Check,
    /// Right engines that must agree, planted faults that must be found, and how small they may be
    Verdicts(bench_verdicts::Verdicts),
    /// Every planted fault: located, named, wrongly named, by class
    Causes(bench_causes::Causes),
    /// What naming a cause costs on SmolLM2-135M and Qwen2.5-0.5B, in time and memory
    Diagnose,
    /// A checkpoint larger than memory: time for each layer, and peak memory
    Large(bench_large::Large),
    /// `diff` of two traces on disk against numpy computing the same numbers, and its peak memory
    Diff(diff::Sizes),
}

const PREFILL: usize = 64;
const DECODE: usize = 16;
const KEEP_ALL: usize = 16 << 30;

pub fn run(c: &Bench) -> Result<()> {
    match &c.what {
        What::Verdicts(verdicts) => return bench_verdicts::run(verdicts),
        What::Diff(sizes) => return diff::run(sizes, c.rounds),
        What::Causes(causes) => return bench_causes::run(causes),
        What::Diagnose => return stories::diagnosis_cost(c.rounds),
        What::Large(large) => return bench_large::run(large),
        What::Reference | What::Check => {}
    }
    let path = match &c.model {
        Some(path) => path.clone(),
        None => models::folder(&python::interpreter()?)?.join("smollm2.gguf"),
    };
    let model = Model::new(Checkpoint::open(&path)?)?;
    match c.what {
        What::Reference => reference(c, &model, &path),
        What::Check => check_costs(c, &model, &path),
        What::Verdicts(_) | What::Diff(_) | What::Causes(_) | What::Diagnose | What::Large(_) => Ok(()),
    }
}

fn tokens(n: usize, vocab: usize) -> Vec<i64> {
    (0..n).map(|i| ((i * 7919 + 13) % vocab.min(30_000)) as i64).collect()
}

fn executor<'a>(model: &'a Model, weights: &'a Weights<'a>) -> Executor<'a> {
    Executor { program: &model.program, weights, arithmetic: None, lanes: 0, progress: None }
}

fn reference(c: &Bench, model: &Model, path: &Path) -> Result<()> {
    let weights = Weights::new(&model.checkpoint, Float::F32, KEEP_ALL);
    let mut other = Transformers::start(path)?;
    let mut rows: [Vec<f64>; 6] = Default::default();
    for round in 0..=c.rounds {
        let times = [
            prefill(model, &weights)?,
            other.measure("prefill")?,
            decode(model, &weights)?,
            other.measure("decode")?,
            recorded(model, &weights, false)?,
            recorded(model, &weights, true)?,
        ];
        // The first round warms up.
        if round > 0 {
            rows.iter_mut().zip(times).for_each(|(row, t)| row.push(t));
        }
    }
    let [ours, theirs, our_step, their_step, kept, written] = &rows;
    println!("{} rounds, medians in milliseconds; ratios are medians of the ratios of each round", c.rounds);
    print_row(&format!("prefill of {PREFILL} tokens, reference / transformers"), ours, theirs);
    print_row("decode, each token, reference / transformers", our_step, their_step);
    print_row("prefill, every tap copied / none", kept, ours);
    print_row("prefill, every tap written to disk / none", written, ours);
    Ok(())
}

fn print_row(what: &str, a: &[f64], b: &[f64]) {
    let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    println!("{what:<50} {:>8.1} {:>8.1}   ratio {:.2}", median(a), median(b), median(&ratios));
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn prefill(model: &Model, weights: &Weights) -> Result<f64> {
    let ids = tokens(PREFILL, model.program.vocab);
    let mut session = Session::<f32>::new(executor(model, weights));
    let start = Instant::now();
    session.feed_with(&ids, &mut Nothing)?;
    Ok(milliseconds(start))
}

fn decode(model: &Model, weights: &Weights) -> Result<f64> {
    let ids = tokens(PREFILL + DECODE, model.program.vocab);
    let mut session = Session::<f32>::new(executor(model, weights));
    session.feed(&ids[..PREFILL])?;
    let start = Instant::now();
    for id in &ids[PREFILL..] {
        session.feed(&[*id])?;
    }
    Ok(milliseconds(start) / DECODE as f64)
}

/// A prefill with every tap put into a step, and the step written or thrown away.
fn recorded(model: &Model, weights: &Weights, write: bool) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let ids = tokens(PREFILL, model.program.vocab);
    let mut session = Session::<f32>::new(executor(model, weights));
    let mut writer = Writer::create(&folder.path().join("trace"), Manifest::new(Producer::default()))?;
    let positions: Vec<i64> = (0..PREFILL as i64).collect();
    let start = Instant::now();
    let mut all = Everything { model, step: writer.step(&ids, &positions) };
    session.feed_with(&ids, &mut all)?;
    if write {
        all.step.finish()?;
    }
    Ok(milliseconds(start))
}

struct Everything<'a, 'w> {
    model: &'a Model,
    step: StepWriter<'w>,
}

impl Taps<f32> for Everything<'_, '_> {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, computed: Computed<f32>) -> Result<Option<Tensor<f32>>, firstdiff_reference::Error> {
        self.step.tap(&self.model.program.ops[computed.op].tap, computed.exact, false);
        Ok(None)
    }
}

fn check_costs(c: &Bench, model: &Model, path: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let trace_path = folder.path().join("trace");
    let weights = Weights::new(&model.checkpoint, Float::F32, KEEP_ALL);
    let ids = tokens(PREFILL, model.program.vocab);
    let mut manifest = Manifest::new(Producer::default());
    manifest.arithmetic = Some(serde_json::from_str(r#"{"activations":"f32"}"#)?);
    let mut writer = Writer::create(&trace_path, manifest)?;
    let positions: Vec<i64> = (0..PREFILL as i64).collect();
    let mut all = Everything { model, step: writer.step(&ids, &positions) };
    Session::<f32>::new(executor(model, &weights)).feed_with(&ids, &mut all)?;
    all.step.finish()?;
    writer.finish()?;

    let trace = Trace::open(&trace_path)?;
    let (mut forwards, mut checks) = (Vec::new(), Vec::new());
    for round in 0..=c.rounds {
        let forward = prefill(model, &weights)?;
        let start = Instant::now();
        let options = CheckOptions::default();
        let verdict = check(&trace, model, &options)?.verdict;
        let time = milliseconds(start);
        if round > 0 {
            println!("  forward {forward:.1} check {time:.1} {verdict:?}");
            forwards.push(forward);
            checks.push(time);
        }
    }
    println!("{} rounds, medians in milliseconds", c.rounds);
    print_row(&format!("check of {PREFILL} tokens, every tap / one forward"), &checks, &forwards);
    let peak = peak_memory(&trace_path, path)?;
    println!("{:<50} {:>8.1} MiB", "check, peak resident memory of the process", peak as f64 / 1024.0);
    Ok(())
}

/// Peak resident memory of `firstdiff check`, in KiB, as the system accounts for it.
fn peak_memory(trace: &Path, model: &Path) -> Result<u64> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let mut command = Command::new(workspace::target().join("release/firstdiff"));
    command.arg("check").arg(trace).arg("--model").arg(model).stdout(Stdio::null());
    let mut child = command.spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak = line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(peak).max(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(peak)
}

/// transformers in a process of its own, told when to measure, so that the two take turns.
struct Transformers {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Transformers {
    fn start(model: &Path) -> Result<Transformers> {
        let script = workspace::root().join("crates/dev/python/bench_transformers.py");
        let mut command = Command::new(python::interpreter()?);
        command.arg(script).arg(model).args([PREFILL.to_string(), DECODE.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no pipe to python")?;
        let output = BufReader::new(child.stdout.take().context("no pipe from python")?);
        let mut python = Transformers { child, input, output };
        if python.line()? != "ready" {
            bail!("bench_transformers.py did not start");
        }
        Ok(python)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_string())
    }

    fn measure(&mut self, what: &str) -> Result<f64> {
        writeln!(self.input, "{what}")?;
        self.input.flush()?;
        let line = self.line()?;
        line.parse().with_context(|| format!("bench_transformers.py said '{line}'"))
    }
}

impl Drop for Transformers {
    fn drop(&mut self) {
        // It has nothing to lose; an error here means it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
