//! Times the CUDA engine on one model, loaded once, and prints seconds as JSON; `crates/dev/python/cuda` reads them.
//!
//!     cuda_bench MODEL [--contexts 128,4096] [--tokens 256] [--rounds 5] [--prefill 2048] [--tap-steps 32]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use firstdiff_checkpoint::Checkpoint;
use firstdiff_engine::cuda::{Engine, Options, Wanted};
use firstdiff_engine::sampler::bits;
use firstdiff_model::Model;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: cuda_bench MODEL [--contexts 128,4096] [--tokens N] [--rounds N] [--prefill N] [--tap-steps N]";
    let mut given = std::env::args().skip(1);
    let path = given.next().ok_or(usage)?;
    let (mut contexts, mut tokens, mut rounds, mut prefill, mut tap_steps) =
        (vec![128, 4096], 256, 5, 2048, 32);
    while let Some(option) = given.next() {
        let value = given.next().ok_or(usage)?;
        match option.as_str() {
            "--contexts" => contexts = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--tokens" => tokens = value.parse()?,
            "--rounds" => rounds = value.parse()?,
            "--prefill" => prefill = value.parse()?,
            "--tap-steps" => tap_steps = value.parse()?,
            _ => return Err(usage.into()),
        }
    }
    let model = Model::new(Checkpoint::open(Path::new(&path))?)?;
    let longest = contexts.iter().copied().max().unwrap_or(0).max(prefill) + tokens + tap_steps + 1;
    let started = Instant::now();
    let mut engine = Engine::load(&model, &Options { device: 0, context: longest })?;
    let load = started.elapsed().as_secs_f64();
    let vocab = model.program.vocab as u64;
    let prompt = |n: usize| (0..n as u64).map(|i| (bits(7, i) % vocab) as u32).collect::<Vec<u32>>();

    let mut decode = vec![];
    for &context in &contexts {
        engine.rewind(0);
        let first = engine.prefill(&prompt(context), &Wanted::none())?.best;
        let mut seconds = vec![];
        // The first round warms up, and is not counted.
        for round in 0..=rounds {
            engine.rewind(context);
            let started = Instant::now();
            let made = engine.generate(first, tokens, &mut |_| false)?;
            if made.len() != tokens {
                return Err(format!("{} tokens were made, not {tokens}", made.len()).into());
            }
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        decode.push(json!({"context": context, "tokens": tokens, "seconds": seconds}));
    }

    let mut seconds = vec![];
    if prefill > 0 {
        for round in 0..=rounds {
            engine.rewind(0);
            let started = Instant::now();
            engine.prefill(&prompt(prefill), &Wanted::none())?;
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
    }

    let mut taps = Value::Null;
    if tap_steps > 0 {
        let all = Wanted::matching(&model.program, &["all"]);
        let logits = Wanted::matching(&model.program, &["logits"]);
        let context = contexts.first().copied().unwrap_or(128);
        engine.rewind(0);
        let first = engine.prefill(&prompt(context), &Wanted::none())?.best;
        let mut time = |wanted: &Wanted| -> Result<Vec<f64>, Box<dyn Error>> {
            let mut seconds = vec![];
            for round in 0..=rounds {
                engine.rewind(context);
                let started = Instant::now();
                let mut token = first;
                for _ in 0..tap_steps {
                    token = engine.decode(token, wanted)?.best;
                }
                if round > 0 {
                    seconds.push(started.elapsed().as_secs_f64());
                }
            }
            Ok(seconds)
        };
        taps = json!({
            "context": context, "steps": tap_steps, "off": time(&Wanted::none())?, "logits": time(&logits)?,
            "all": time(&all)?,
        });
    }
    let device = engine.device();
    let result = json!({
        "model": path, "device": device.name, "load": load, "decode": decode,
        "prefill": {"tokens": prefill, "seconds": seconds}, "taps": taps,
    });
    println!("{result:#}");
    Ok(())
}
