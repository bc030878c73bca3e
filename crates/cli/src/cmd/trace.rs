use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use firstdiff_model::{Model, Simulation};
use firstdiff_trace::{Manifest, ModelSpec, Producer, Writer, tap};

use crate::args::parse_tokens;
use crate::exit::Exit;
use crate::generate::{Place, Source};
use crate::load;
use crate::progress::Progress;
use crate::sampling::{self, Sampling};

/// Record a trace: the prompt, then decoding.
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
    /// Steps after the prompt, of one generated token each
    #[arg(long, default_value_t = 0, value_name = "N")]
    steps: usize,
    /// Feed the prompt in pieces of so many tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// What to record: all, or names with * for any run of characters
    #[arg(long, default_value = "all", value_delimiter = ',', value_name = "GLOBS")]
    taps: Vec<String>,
    /// What the reference does besides: deepseek, for DeepSeek-V4 as its own inference code runs it
    #[arg(long, value_name = "NAME", value_parser = parse_simulation)]
    simulate: Option<Simulation>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    place: Place,
}

/// A simulation by its name.
fn parse_simulation(name: &str) -> Result<Simulation, String> {
    Simulation::from_name(name).ok_or_else(|| "the only simulation is deepseek".to_string())
}

pub fn run(c: &Trace) -> Result<Exit> {
    c.sampling.options()?;
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
    let context = prompt.len() + c.steps;
    c.place.with(&model, context, &c.taps, |source| record(c, &model, &prompt, source))
}

fn record(c: &Trace, model: &Model, prompt: &[i64], source: &mut dyn Source) -> Result<Exit> {
    let mut sampler = sampling::sampler(c.sampling.options()?, prompt);
    let mut writer = Writer::create(&c.out, manifest(c, model, source)?)?;
    let progress = Progress::new("recording");
    let chunk = c.chunk.map_or(prompt.len(), |n| n as usize);
    let mut pieces: Vec<Vec<i64>> = prompt.chunks(chunk).map(<[i64]>::to_vec).collect();
    let total = pieces.len() + c.steps;
    let (mut done, mut first) = (0, 0);
    while done < total {
        let tokens = &pieces[done];
        let positions: Vec<i64> = (first..).take(tokens.len()).collect();
        first += tokens.len() as i64;
        let mut step = writer.step(tokens, &positions);
        source.feed(tokens, Some(&mut step))?;
        if done + 1 >= pieces.len() {
            let token = i64::from(source.choose(&mut sampler).with_context(|| format!("step {done}"))?);
            step.sampled(token);
            pieces.push(vec![token]);
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

fn manifest(c: &Trace, model: &Model, source: &dyn Source) -> Result<Manifest> {
    let version = env!("CARGO_PKG_VERSION").to_string();
    let mut manifest = Manifest::new(Producer { name: "firstdiff".into(), version });
    source.describe(&mut manifest);
    manifest.model = Some(ModelSpec {
        name: c.model.file_name().map(|n| n.to_string_lossy().into_owned()),
        family: Some(model.family.name.into()),
        fingerprint: Some(model.checkpoint.fingerprint()),
        ..ModelSpec::default()
    });
    if let (Some(Simulation::DeepSeek), Some(arithmetic)) = (c.simulate, manifest.arithmetic.as_mut()) {
        arithmetic.matmul_inputs = Some("as-stored".into());
        arithmetic.other.insert("simulates".into(), "deepseek".into());
    }
    manifest.prompt.clone_from(&c.prompt);
    sampling::declare(&c.sampling.options()?, &mut manifest);
    manifest.stop_ids =
        Some(model.checkpoint.generation().stop_ids.keys().map(|&id| i64::from(id)).collect());
    Ok(manifest)
}
