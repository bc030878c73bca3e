//! Reads one JSON object a line on standard input: `logits`, `seen` (ids), `options` (as `trace.json` spells them),
//! and `draws`. Answers with a line each: `weights` of all tokens as they are drawn from, and `tokens`, that many
//! draws from this row. A logit that is no number stands for minus infinity. The tests in `tests/python` compare it with transformers.

use std::io::{BufRead, Write};

use firstdiff_engine::sampler::{SampleOptions, Sampler, keep};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let logits: Vec<f32> =
            numbers(&request["logits"]).map(|x| x.as_f64().unwrap_or(f64::NEG_INFINITY) as f32).collect();
        let seen: Vec<u32> = numbers(&request["seen"]).filter_map(|x| x.as_u64().map(|x| x as u32)).collect();
        let options = &request["options"];
        let number = |key: &str, neutral: f64| options[key].as_f64().unwrap_or(neutral);
        let options = SampleOptions {
            temperature: number("temperature", 1.0),
            top_k: number("top_k", 0.0) as u32,
            top_p: number("top_p", 1.0),
            min_p: number("min_p", 0.0),
            repetition_penalty: number("repetition_penalty", 1.0),
            seed: number("seed", 0.0) as u64,
        };
        options.check()?;
        let sampler = Sampler::new(options.clone(), seen);
        let penalised = sampler.penalised(&logits);
        let kept = keep(&penalised, &options).ok_or("nothing to choose")?;
        let weights: Vec<u64> = penalised.iter().map(|&x| kept.weight(x)).collect();
        let draws = request["draws"].as_u64().unwrap_or(0);
        let mut plain = Sampler::new(SampleOptions { repetition_penalty: 1.0, ..options }, []);
        let tokens = (0..draws).map(|_| plain.choose(&penalised)).collect::<Result<Vec<_>, _>>()?;
        writeln!(out, "{}", json!({"weights": weights, "tokens": tokens}))?;
    }
    Ok(())
}

fn numbers(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
