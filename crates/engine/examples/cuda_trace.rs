//! Records a trace of the CUDA engine: the prompt as one step, then greedy decoding.
//!
//!     cuda_trace MODEL OUT PROMPT-IDS|random:N STEPS [GLOB,GLOB] [decode-prompt] [broken-barrier]
//!
//! With `decode-prompt` the prompt goes in token by token, as decoding would; with `broken-barrier` the kernel has the
//! bug that is kept.

use std::path::Path;

use firstdiff_checkpoint::Checkpoint;
use firstdiff_engine::cuda::{Engine, Options, Step, Wanted};
use firstdiff_model::Model;
use firstdiff_trace::{Manifest, ModelSpec, Producer, Writer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, prompt, steps, rest @ ..] = args.as_slice() else {
        return Err(
            "usage: cuda_trace MODEL OUT PROMPT-IDS|random:N STEPS [GLOBS] [decode-prompt] [broken-barrier]"
                .into(),
        );
    };
    let model = Model::new(Checkpoint::open(Path::new(model))?)?;
    let vocab = model.program.vocab as u64;
    let prompt: Vec<u32> = match prompt.strip_prefix("random:") {
        // A fixed walk over the vocabulary.
        Some(n) => (1..=n.parse()?).map(|i: u64| (i * 7919 % vocab) as u32).collect(),
        None => prompt.split(',').map(str::parse).collect::<Result<_, _>>()?,
    };
    let steps: usize = steps.parse()?;
    let globs: Vec<&str> = rest.first().map_or("all", |g| g.as_str()).split(',').collect();
    let wanted = Wanted::matching(&model.program, &globs);
    let mut engine =
        Engine::load(&model, &Options { context: prompt.len() + steps + 8, ..Options::default() })?;
    let option = |name: &str| rest.iter().skip(1).any(|r| r == name);
    if option("broken-barrier") {
        engine.break_barrier()?;
    }
    let mut manifest =
        Manifest::new(Producer { name: "firstdiff cuda".into(), version: env!("CARGO_PKG_VERSION").into() });
    manifest.model = Some(ModelSpec {
        family: Some(model.family.name.into()),
        fingerprint: Some(model.checkpoint.fingerprint()),
        ..ModelSpec::default()
    });
    manifest.arithmetic = Some(engine.arithmetic());
    let mut writer = Writer::create(Path::new(out), manifest)?;
    let mut record = |tokens: &[u32], first: usize, step: Step| {
        let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
        let positions: Vec<i64> = (first as i64..).take(ids.len()).collect();
        let mut entry = writer.step(&ids, &positions);
        for tap in step.taps {
            entry.bytes(&tap.name, tap.dtype, &tap.shape, tap.bytes);
        }
        entry.sampled(i64::from(step.best));
        entry.finish()?;
        Ok::<u32, firstdiff_trace::Error>(step.best)
    };
    let mut next = 0;
    if option("decode-prompt") {
        for (n, token) in prompt.iter().enumerate() {
            next = record(&[*token], n, engine.decode(*token, &wanted)?)?;
        }
    } else {
        next = record(&prompt, 0, engine.prefill(&prompt, &wanted)?)?.max(next);
    }
    let mut made = vec![next];
    for n in 0..steps {
        next = record(&[next], prompt.len() + n, engine.decode(next, &wanted)?)?;
        made.push(next);
    }
    writer.finish()?;
    println!("{}: tokens {made:?}", engine.device().name);
    Ok(())
}
