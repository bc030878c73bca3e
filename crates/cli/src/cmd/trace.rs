use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use firstdiff_model::{Model, Program, Simulation};
use firstdiff_reference::{Computed, Executor, Session, Taps, Weights};
use firstdiff_tensor::{Float, Real, Tensor};
use firstdiff_trace::{ArithmeticSpec, Manifest, ModelSpec, Producer, StepWriter, Writer, tap};

use crate::args::{Precision, Resources, parse_tokens};
use crate::cmd::run::argmax;
use crate::exit::Exit;
use crate::load;
use crate::progress::Progress;

/// Record a trace of the reference: the prompt, then greedy decoding.
#[derive(Debug, ClapArgs)]
pub struct Trace {
    /// The model
    model: PathBuf,
    /// The folder to write, absent or empty
    out: PathBuf,
    /// The prompt, as text
    #[arg(long, required_unless_present = "tokens", conflicts_with = "tokens")]
    prompt: Option<String>,
    /// The prompt, as token ids: 1,2,3
    #[arg(long, value_parser = parse_tokens, value_name = "IDS")]
    tokens: Option<std::vec::Vec<i64>>,
    /// Greedy steps after the prompt
    #[arg(long, default_value_t = 0, value_name = "N")]
    steps: usize,
    /// Feed the prompt in pieces of so many tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// Precision of the reference
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
    /// What to record: all, or names with * for any run of characters
    #[arg(long, default_value = "all", value_delimiter = ',', value_name = "GLOBS")]
    taps: Vec<String>,
    /// What the reference does besides: deepseek, for DeepSeek-V4 as its own inference code runs it
    #[arg(long, value_name = "NAME", value_parser = parse_simulation)]
    simulate: Option<Simulation>,
    #[command(flatten)]
    resources: Resources,
}

/// A simulation by its name.
fn parse_simulation(name: &str) -> Result<Simulation, String> {
    Simulation::from_name(name).ok_or_else(|| "the only simulation is deepseek".to_string())
}

pub fn run(c: &Trace) -> Result<Exit> {
    c.resources.start_threads()?;
    let model = load::simulating(&c.model, c.simulate)?;
    let prompt = match (&c.tokens, &c.prompt) {
        (Some(tokens), _) => tokens.clone(),
        (None, Some(text)) => {
            model.checkpoint.tokenizer()?.encode(text, true)?.into_iter().map(i64::from).collect()
        }
        (None, None) => bail!("give --prompt or --tokens"),
    };
    if prompt.is_empty() {
        bail!("the prompt has no tokens; give at least one");
    }
    for glob in c.taps.iter().filter(|g| *g != "all") {
        if !model.program.ops.iter().any(|op| tap::matches(glob, &op.tap)) {
            bail!(
                "--taps '{glob}' fits no value of this model; docs/TRACE.md lists the names, as in layers.*.out"
            );
        }
    }
    match c.dtype {
        Precision::F32 => record::<f32>(c, &model, &prompt, Float::F32),
        Precision::F64 => record::<f64>(c, &model, &prompt, Float::F64),
    }
}

fn record<T: Real>(c: &Trace, model: &Model, prompt: &[i64], format: Float) -> Result<Exit> {
    let weights = Weights::new(&model.checkpoint, Float::F32, c.resources.memory());
    let executor =
        Executor { program: &model.program, weights: &weights, arithmetic: None, lanes: 0, progress: None };
    let mut session = Session::<T>::new(executor);
    let mut writer = Writer::create(&c.out, manifest(c, model, format))?;
    let progress = Progress::new("recording");
    let chunk = c.chunk.map_or(prompt.len(), |n| n as usize);
    let mut pieces: Vec<Vec<i64>> = prompt.chunks(chunk).map(<[i64]>::to_vec).collect();
    let total = pieces.len() + c.steps;
    let mut done = 0;
    while done < total {
        let tokens = &pieces[done];
        let first = i64::from(session.position());
        let positions: Vec<i64> = (first..).take(tokens.len()).collect();
        let mut recorder = Recorder {
            program: &model.program,
            wanted: &c.taps,
            step: writer.step(tokens, &positions),
            wide: format == Float::F64,
            last: 0,
        };
        session.feed_with(tokens, &mut recorder)?;
        let Recorder { mut step, last, .. } = recorder;
        if done + 1 >= pieces.len() {
            step.sampled(last as i64);
            pieces.push(vec![last as i64]);
        }
        step.finish().with_context(|| format!("step {done}"))?;
        done += 1;
        progress.report(done, total);
    }
    writer.finish()?;
    drop(progress);
    eprintln!("wrote {total} steps to {}", c.out.display());
    Ok(Exit::Agrees)
}

fn manifest(c: &Trace, model: &Model, format: Float) -> Manifest {
    let version = env!("CARGO_PKG_VERSION").to_string();
    let mut manifest = Manifest::new(Producer { name: "firstdiff reference".into(), version });
    manifest.model = Some(ModelSpec {
        name: c.model.file_name().map(|n| n.to_string_lossy().into_owned()),
        family: Some(model.family.name.into()),
        fingerprint: Some(model.checkpoint.fingerprint()),
        ..ModelSpec::default()
    });
    manifest.arithmetic = Some(ArithmeticSpec {
        weights: Some("file".into()),
        activations: Some(format.name().into()),
        accumulate: Some(format.name().into()),
        ..ArithmeticSpec::default()
    });
    if let (Some(Simulation::DeepSeek), Some(arithmetic)) = (c.simulate, manifest.arithmetic.as_mut()) {
        arithmetic.matmul_inputs = Some("as-stored".into());
        arithmetic.other.insert("simulates".into(), "deepseek".into());
    }
    manifest.prompt.clone_from(&c.prompt);
    manifest.stop_ids =
        Some(model.checkpoint.generation().stop_ids.keys().map(|&id| i64::from(id)).collect());
    manifest
}

/// Puts the wanted values into a step file.
struct Recorder<'a, 'w> {
    program: &'a Program,
    wanted: &'a [String],
    step: StepWriter<'w>,
    wide: bool,
    last: usize,
}

impl<T: Real> Taps<T> for Recorder<'_, '_> {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, computed: Computed<T>) -> Result<Option<Tensor<T>>, firstdiff_reference::Error> {
        let op = &self.program.ops[computed.op];
        let name = &op.tap;
        if self.wanted.iter().any(|glob| glob == "all" || tap::matches(glob, name)) {
            match op.kind.discrete() {
                Some(_) => self.step.choice(name, computed.exact),
                None => self.step.tap(name, computed.exact, self.wide),
            }
        }
        if computed.op + 1 == self.program.ops.len() {
            self.last = argmax(computed.exact.row(computed.exact.rows() - 1));
        }
        Ok(None)
    }
}
