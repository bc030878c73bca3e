use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use firstdiff_checkpoint::{Message, Tokenizer};
use firstdiff_compare::Check;
use firstdiff_model::Model;
use serde_json::{Value, json};

use crate::args::{OutputFormat, parse_tokens};
use crate::cmd::check;
use crate::exit::Exit;
use crate::generate::{Backend, Place, Source};
use crate::load;
use crate::out;
use crate::sampling::{self, Sampling};
use crate::verify::{Background, Recording};

/// Generate text.
///
/// The prompt goes through the model's chat template, if it has one. Generation ends at any of the
/// stop ids that the model files declare. Tokens are chosen in this order: repetition penalty, temperature, top-k,
/// top-p, min-p, draw.
#[derive(Debug, ClapArgs)]
pub struct Run {
    /// The model
    model: PathBuf,
    /// The prompt
    #[arg(required_unless_present = "tokens", conflicts_with = "tokens")]
    prompt: Option<String>,
    /// The prompt as token ids, 1,2,3: no tokenizer and no template is needed
    #[arg(long, value_parser = parse_tokens, value_name = "IDS")]
    tokens: Option<std::vec::Vec<i64>>,
    /// Feed the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Most tokens to generate
    #[arg(short = 'n', long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Ids to stop at, 1,2,3, instead of those that the model files declare
    #[arg(long, value_parser = parse_tokens, value_name = "IDS", conflicts_with = "ignore_stop")]
    stop: Option<std::vec::Vec<i64>>,
    /// Stop at no id
    #[arg(long)]
    ignore_stop: bool,
    /// Hold the prompt and the first N generated tokens against the reference while the rest is generated. The verdict
    /// goes to stderr, and decides the exit code as that of `check`
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "8")]
    verify: Option<usize>,
    /// Tell the bits of all logits as one number, to compare runs by
    #[arg(long)]
    digest: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    place: Place,
}

pub fn run(c: &Run) -> Result<Exit> {
    c.sampling.options()?;
    let model = load::model(&c.model)?;
    let (prompt, tokenizer) = prompt(c, &model)?;
    if prompt.is_empty() {
        bail!("the prompt has no tokens; give at least one");
    }
    let recording = c.verify.map(|steps| Recording::new(steps, &model, prompt.len())).transpose()?;
    let taps = recording.as_ref().map_or(vec![], |r| r.taps.clone());
    let started = Instant::now();
    c.place.with(&model, prompt.len() + c.max_tokens, &taps, |source| {
        let loading = started.elapsed().as_secs_f64();
        std::thread::scope(|threads| {
            let background = recording.map(|r| Background::new(r, threads, &model, &c.model));
            let shown = Shown {
                tokenizer: tokenizer.as_ref(),
                printed: String::new(),
                live: c.format == OutputFormat::Text,
            };
            generate(c, &model, &prompt, shown, source, background, loading)
        })
    })
}

/// The prompt's tokens, and the tokenizer where one is needed to show the result.
fn prompt(c: &Run, model: &Model) -> Result<(Vec<i64>, Option<Tokenizer>)> {
    if let Some(tokens) = &c.tokens {
        return Ok((tokens.clone(), model.checkpoint.tokenizer().ok()));
    }
    let text = c.prompt.as_deref().unwrap_or_default();
    let tokenizer = model.checkpoint.tokenizer()?;
    let ids = if tokenizer.has_chat_template() && !c.raw {
        let message = Message { role: "user".into(), content: text.into() };
        // The template writes the special tokens itself.
        tokenizer.encode(&tokenizer.render_chat(&[message])?, false)?
    } else {
        tokenizer.encode(text, true)?
    };
    Ok((ids.into_iter().map(i64::from).collect(), Some(tokenizer)))
}

/// What a generation has come to.
#[derive(Default)]
struct Made {
    tokens: Vec<i64>,
    margins: Vec<Option<f64>>,
    stop: Option<i64>,
    digest: Digest,
}

fn generate(
    c: &Run,
    model: &Model,
    prompt: &[i64],
    mut shown: Shown<'_>,
    source: &mut dyn Source,
    mut verifying: Option<Background<'_, '_>>,
    loading: f64,
) -> Result<Exit> {
    let stops = stops(c, model);
    let mut sampler = sampling::sampler(c.sampling.options()?, prompt);
    let mut made = Made::default();
    if let Some(verifying) = &mut verifying {
        verifying.begin(source, &stops, sampler.options())?;
    }
    let started = Instant::now();
    let mut prompt_time = None;
    let mut input = prompt.to_vec();
    while made.tokens.len() < c.max_tokens {
        let recording = verifying.as_ref().is_some_and(Background::recording);
        // Where the best token is wanted and nothing else of a step, the backend goes on by itself.
        if !recording
            && !c.digest
            && sampler.options().plain()
            && let (Some(&first), [_]) = (made.tokens.last(), &input[..])
        {
            let mut all = made.tokens.clone();
            let mut failed = None;
            let mut seen = |token: u32| {
                all.push(i64::from(token));
                let stop = stops.contains(&i64::from(token));
                if !stop && let Err(error) = shown.update(&all) {
                    failed = Some(error);
                }
                stop || failed.is_some()
            };
            let count = c.max_tokens - made.tokens.len();
            if let Some(tokens) = source.rush(u32::try_from(first)?, count, &mut seen) {
                made.tokens.extend(tokens?.into_iter().map(i64::from));
                made.margins.resize(made.tokens.len(), None);
                if let Some(error) = failed {
                    return Err(error);
                }
                made.stop = made.tokens.last().copied().filter(|token| stops.contains(token));
                break;
            }
        }
        let token = match verifying.as_mut().filter(|_| recording) {
            Some(verifying) => verifying.step(source, &input, &mut sampler)?,
            None => {
                source.feed(&input, None)?;
                source.choose(&mut sampler)?
            }
        };
        if c.digest {
            made.digest.take(&source.logits()?);
        }
        made.margins.push(source.margin());
        prompt_time.get_or_insert_with(|| started.elapsed().as_secs_f64());
        let token = i64::from(token);
        made.tokens.push(token);
        if stops.contains(&token) {
            made.stop = Some(token);
            break;
        }
        shown.update(&made.tokens)?;
        input = vec![token];
    }
    let all = started.elapsed().as_secs_f64();
    let text = shown.finish(&made.tokens)?;
    let verdict = verifying.map(Background::verdict).transpose()?;
    if c.format == OutputFormat::Json {
        let prompt_time = prompt_time.unwrap_or(all);
        let seconds = json!({"load": loading, "prompt": prompt_time, "generate": all - prompt_time});
        out::json(&result(
            c,
            prompt,
            &made,
            &text,
            &sampler.options().declared(),
            seconds,
            verdict.as_ref(),
        ))?;
    } else if made.stop.is_none() {
        eprintln!("stopped after {} tokens; -n takes a larger number", c.max_tokens);
    }
    if let Some(verdict) = &verdict {
        eprint!("{}", out::printable(&firstdiff_report::check_text(verdict)));
        return Ok(check::exit(verdict.verdict));
    }
    Ok(Exit::Agrees)
}

/// The result for programs.
fn result(
    c: &Run,
    prompt: &[i64],
    made: &Made,
    text: &str,
    sampling: &serde_json::Map<String, Value>,
    seconds: Value,
    verdict: Option<&Check>,
) -> Value {
    let backend = if c.place.backend == Backend::Cuda { "cuda" } else { "reference" };
    let mut result = json!({
        "format": "firstdiff.run/1", "prompt_ids": prompt, "tokens": made.tokens, "text": text,
        "stop": if made.stop.is_some() { "stop-id" } else { "length" }, "stop_id": made.stop,
        "margins": made.margins, "temperature": sampling.get("temperature").cloned().unwrap_or(json!(0.0)),
        "sampling": sampling, "backend": backend, "seconds": seconds,
    });
    if c.digest {
        result["digest"] = json!(format!("{:016x}", made.digest.0));
    }
    if let Some(verdict) = verdict {
        result["verify"] = firstdiff_report::json::check(verdict);
    }
    result
}

/// A number that the bits of all logits go into, in order.
#[derive(Default)]
struct Digest(u64);

impl Digest {
    fn take(&mut self, logits: &[f32]) {
        for x in logits {
            self.0 = (self.0.rotate_left(5) ^ u64::from(x.to_bits())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// Ids that end the generation.
fn stops(c: &Run, model: &Model) -> Vec<i64> {
    match &c.stop {
        _ if c.ignore_stop => vec![],
        Some(ids) => ids.clone(),
        None => model.checkpoint.generation().stop_ids.into_keys().map(i64::from).collect(),
    }
}

/// Prints text as it grows. A token may end inside a character: only whole text is shown.
struct Shown<'t> {
    tokenizer: Option<&'t Tokenizer>,
    printed: String,
    live: bool,
}

impl Shown<'_> {
    fn decode(&self, tokens: &[i64]) -> Result<String> {
        let ids: Vec<u32> = tokens.iter().filter_map(|&t| u32::try_from(t).ok()).collect();
        match self.tokenizer {
            Some(tokenizer) => Ok(tokenizer.decode(&ids, true)?),
            None => Ok(tokens.iter().map(i64::to_string).collect::<Vec<_>>().join(",")),
        }
    }

    fn update(&mut self, tokens: &[i64]) -> Result<()> {
        if self.live {
            let text = self.decode(tokens)?;
            self.show(text.trim_end_matches('\u{fffd}'))?;
        }
        Ok(())
    }

    fn show(&mut self, text: &str) -> Result<()> {
        if let Some(new) = text.strip_prefix(self.printed.as_str())
            && !new.is_empty()
        {
            out::raw(new)?;
            self.printed = text.to_string();
        }
        Ok(())
    }

    fn finish(mut self, tokens: &[i64]) -> Result<String> {
        let text = self.decode(tokens)?;
        if self.live {
            self.show(&text)?;
            out::raw("\n")?;
        }
        Ok(text)
    }
}
