use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use firstdiff_checkpoint::{Message, Tokenizer};
use firstdiff_model::Model;
use firstdiff_reference::{Executor, Session, Weights};
use firstdiff_tensor::{Float, Real};
use serde_json::json;

use crate::args::{OutputFormat, Precision, Resources, parse_tokens};
use crate::exit::Exit;
use crate::load;
use crate::out;

/// Generate text with the reference.
///
/// The prompt goes through the model's chat template, if it has one. Generation ends at any of the
/// stop ids that the model files declare.
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
    /// 0 takes the best token; higher draws more freely
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Precision of the reference
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    resources: Resources,
}

pub fn run(c: &Run) -> Result<Exit> {
    if !(c.temperature.is_finite() && c.temperature >= 0.0) {
        bail!("--temperature {} is not a number from 0 up", c.temperature);
    }
    c.resources.start_threads()?;
    let model = load::model(&c.model)?;
    let (prompt, tokenizer) = prompt(c, &model)?;
    if prompt.is_empty() {
        bail!("the prompt has no tokens; give at least one");
    }
    match c.dtype {
        Precision::F32 => generate::<f32>(c, &model, &prompt, tokenizer.as_ref()),
        Precision::F64 => generate::<f64>(c, &model, &prompt, tokenizer.as_ref()),
    }
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

fn generate<T: Real>(c: &Run, model: &Model, prompt: &[i64], tokenizer: Option<&Tokenizer>) -> Result<Exit> {
    let weights = Weights::new(&model.checkpoint, Float::F32, c.resources.memory());
    let executor =
        Executor { program: &model.program, weights: &weights, arithmetic: None, lanes: 0, progress: None };
    let mut session = Session::<T>::new(executor);
    let stops = model.checkpoint.generation().stop_ids;
    let mut draws = Draws(c.seed);
    let mut shown = Shown { tokenizer, printed: String::new(), live: c.format == OutputFormat::Text };
    let (mut tokens, mut margins, mut stop) = (Vec::<i64>::new(), Vec::new(), None);
    let mut logits = session.feed(prompt)?;
    while tokens.len() < c.max_tokens {
        let (token, margin) = choose(&logits, c.temperature, &mut draws);
        margins.push(margin);
        tokens.push(token as i64);
        if u32::try_from(token).is_ok_and(|t| stops.contains_key(&t)) {
            stop = Some(token);
            break;
        }
        shown.update(&tokens)?;
        if tokens.len() < c.max_tokens {
            logits = session.feed(&[token as i64])?;
        }
    }
    let text = shown.finish(&tokens)?;
    if c.format == OutputFormat::Json {
        let result = json!({
            "format": "firstdiff.run/1", "prompt_ids": prompt, "tokens": tokens, "text": text,
            "stop": if stop.is_some() { "stop-id" } else { "length" }, "stop_id": stop, "margins": margins,
            "temperature": c.temperature,
        });
        out::json(&result)?;
    } else if stop.is_none() {
        eprintln!("stopped after {} tokens; -n takes a larger number", c.max_tokens);
    }
    Ok(Exit::Agrees)
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

/// Index of the largest value; the first of equals.
pub fn argmax<T: Real>(row: &[T]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

/// The next token, and how far the best logit lies above the second.
fn choose<T: Real>(logits: &[T], temperature: f64, draws: &mut Draws) -> (usize, f64) {
    let best = argmax(logits);
    let second = logits.iter().enumerate().filter(|(i, _)| *i != best).map(|(_, x)| x.to_f64());
    let margin = logits[best].to_f64() - second.fold(f64::NEG_INFINITY, f64::max);
    if temperature == 0.0 {
        return (best, margin);
    }
    let weights: Vec<f64> =
        logits.iter().map(|x| ((x.to_f64() - logits[best].to_f64()) / temperature).exp()).collect();
    let mut left = draws.uniform() * weights.iter().sum::<f64>();
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return (i, margin);
        }
    }
    (best, margin)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same on every machine.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
