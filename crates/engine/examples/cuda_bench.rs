//! Times the CUDA engine:
//!
//!     cuda_bench MODEL [--context N,N] [--prefill N] [--baselines] [--taps] [--repeat N] [--matrices]
//!
//! `--repeat` runs N greedy steps three times and compares every logit; `--matrices` compares every matrix that the
//! kernels unpack with what the checkpoint reader says.
//! One line of JSON a measurement; times are medians of batches, by the GPU's clock.

use std::path::Path;

use firstdiff_checkpoint::Checkpoint;
use firstdiff_engine::cuda::{Engine, Error, Options, Wanted};
use firstdiff_model::Model;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn wide(times: Vec<f32>) -> f64 {
    median(times.into_iter().map(f64::from).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let file = args.first().ok_or("usage: cuda_bench MODEL [options]")?;
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let flag = |name: &str| args.iter().any(|a| a == name);
    let contexts = value("--context").map_or("128,4096", String::as_str);
    let contexts: Vec<usize> = contexts.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let rows: usize = value("--prefill").map_or(Ok(0), |n| n.parse())?;
    let model = Model::new(Checkpoint::open(Path::new(file))?)?;
    let most = contexts.iter().max().copied().unwrap_or(0).max(rows) + 128;
    let mut e = Engine::load(&model, &Options { context: most, ..Options::default() })?;
    let device = e.device().name.clone();
    println!("{{\"model\":\"{file}\",\"device\":\"{device}\"}}");
    let vocab = model.program.vocab as u32;
    // Keys and values of real tokens: attention on poison would be NaN.
    let prompt: Vec<u32> = (0..(most - 128) as u32).map(|i| i * 7919 % vocab).collect();
    e.prefill(&prompt, &Wanted::none())?;
    if flag("--matrices") {
        matrices(&model, &e)?;
    }
    let bandwidth = median(e.time_copy(5)?);
    println!("{{\"copy_GB_per_s\":{:.0}}}", bandwidth / 1e9);
    for &context in &contexts {
        let report = |name: &str, e: &Engine, times: Result<Vec<f32>, Error>| match times {
            Ok(times) => {
                let ms = wide(times);
                let limit = e.bytes_per_token(context) as f64 / bandwidth * 1e3;
                println!(
                    "{{\"what\":\"{name}\",\"context\":{context},\"ms\":{ms:.4},\"tokens_per_s\":{:.1},\"fraction\":{:.3}}}",
                    1e3 / ms,
                    limit / ms
                );
            }
            Err(error) => println!("{{\"what\":\"{name}\",\"error\":\"{error}\"}}"),
        };
        let times = e.time_decode(context, 32, 9, &Wanted::none());
        report("decode", &e, times);
        if flag("--taps") {
            let all = Wanted::matching(&model.program, &["all"]);
            let times = e.time_decode(context, 32, 9, &all);
            report("decode, all taps", &e, times);
            let times = e.time_decode(context, 32, 9, &Wanted::none());
            report("decode, taps off again", &e, times);
        }
        if flag("--baselines") {
            let times = e.time_blas_graph(context, 9);
            report("graph, cuBLAS", &e, times);
        }
    }
    if rows > 0 {
        let prompt = &prompt[..rows];
        let whole = wide(e.time_prefill(prompt, 7)?);
        let (times, operations) = e.time_products(prompt, 7)?;
        let (products, rate) = (wide(times), median(e.time_matrix(7)?));
        println!(
            "{{\"prefill\":{rows},\"ms\":{whole:.3},\"tokens_per_s\":{:.0},\"products_ms\":{products:.3},\"products_TFLOPs\":{:.1},\"matrix_TFLOPs\":{:.1}}}",
            rows as f64 / whole * 1e3,
            operations / products / 1e9,
            rate / 1e12
        );
    }
    if let Some(n) = value("--repeat") {
        let n: usize = n.parse()?;
        let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
        for round in 0..3 {
            let (tokens, bits) = long_run(&mut e, n, most)?;
            match &first {
                None => first = Some((tokens, bits)),
                Some((t, b)) => println!(
                    "{{\"round\":{round},\"steps\":{n},\"tokens_equal\":{},\"logits_equal\":{}}}",
                    *t == tokens,
                    *b == bits
                ),
            }
        }
    }
    Ok(())
}

/// Every quantised matrix, as the kernels unpack it, beside the checkpoint reader's values.
fn matrices(model: &Model, e: &Engine) -> Result<(), Box<dyn std::error::Error>> {
    for (name, weight) in model.program.weights().iter().filter(|(_, w)| w.shape.len() == 2) {
        let Some(tensor) = model.checkpoint.tensor(name) else { continue };
        let (ours, theirs) = (e.matrix(name)?, model.checkpoint.read(tensor)?);
        // Products and differences may be fused: one rounding less.
        let scale = theirs.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs())));
        let off = |(a, b): &(&f32, &f32)| {
            let (a, b) = (f64::from(**a), f64::from(**b));
            (a - b).abs() > scale * 2e-7 || a.is_nan() != b.is_nan()
        };
        let wrong = ours.iter().zip(&theirs).filter(off).count();
        let sum = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>();
        let (a, b) = (sum(&ours), sum(&theirs));
        if wrong > 0 || (a - b).abs() > 1e-5 * (1.0 + a.abs()) * (ours.len() as f64).sqrt() {
            println!(
                "{{\"matrix\":\"{name}\",\"shape\":{:?},\"wrong\":{wrong},\"sums\":[{a},{b}]}}",
                weight.shape
            );
        }
    }
    println!("{{\"matrices\":\"compared\"}}");
    Ok(())
}

/// `n` greedy steps, starting anew when the context is full; tokens and a hash of the logits of each step.
fn long_run(e: &mut Engine, n: usize, context: usize) -> Result<(Vec<u32>, Vec<u32>), Error> {
    let (mut tokens, mut hashes, mut next) = (vec![], vec![], 1);
    e.rewind(0);
    for _ in 0..n {
        if e.position() == context {
            e.rewind(0);
        }
        next = e.decode(next, &Wanted::none())?.best;
        tokens.push(next);
        let hash = |h: u32, x: &f32| (h ^ x.to_bits()).wrapping_mul(16_777_619).rotate_left(5);
        hashes.push(e.logits()?.iter().fold(0, hash));
    }
    Ok((tokens, hashes))
}
