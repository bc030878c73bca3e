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
use crate::sampling::{self, Sampling};

/// Generate text with the reference.
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
    c.sampling.options()?;
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
    let stops = stops(c, model);
    let mut sampler = sampling::sampler(c.sampling.options()?, prompt);
    let mut shown = Shown { tokenizer, printed: String::new(), live: c.format == OutputFormat::Text };
    let (mut tokens, mut margins, mut stop) = (Vec::<i64>::new(), Vec::new(), None);
    let mut logits = session.feed(prompt)?;
    while tokens.len() < c.max_tokens {
        let token = i64::from(sampling::choose(&mut sampler, &logits)?);
        margins.push(sampling::margin(&logits));
        tokens.push(token);
        if stops.contains(&token) {
            stop = Some(token);
            break;
        }
        shown.update(&tokens)?;
        if tokens.len() < c.max_tokens {
            logits = session.feed(&[token])?;
        }
    }
    let text = shown.finish(&tokens)?;
    if c.format == OutputFormat::Json {
        let result = json!({
            "format": "firstdiff.run/1", "prompt_ids": prompt, "tokens": tokens, "text": text,
            "stop": if stop.is_some() { "stop-id" } else { "length" }, "stop_id": stop, "margins": margins,
            "temperature": sampler.options().temperature, "sampling": sampler.options().declared(),
        });
        out::json(&result)?;
    } else if stop.is_none() {
        eprintln!("stopped after {} tokens; -n takes a larger number", c.max_tokens);
    }
    Ok(Exit::Agrees)
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
