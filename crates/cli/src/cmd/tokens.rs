use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use firstdiff_compare::{Source, TokensOptions, Verdict, tokens};
use firstdiff_reference::Arithmetic;

use crate::args::{OutputFormat, Resources};
use crate::cmd::check::{LANES, parse_arithmetic};
use crate::exit::Exit;
use crate::load;
use crate::out;

/// Compare the tokens two engines chose: where they part, and whether rounding decides it.
///
/// A and B are traces, or files with token ids. Sequences of traces are paired by their prompts; a list without a prompt
/// is compared as a whole, or behind the other side's prompt.
///
/// With a model, a fork is judged by the reference; without one, by
/// the recorded logits of both sides. Also reports output that repeats itself, stop ids that were
/// ignored, and choices that do not follow from the declared sampling.
///
/// Exit code 0: the same, or parted by a tie; 1: not, or something reported is wrong; 3: nothing to
/// compare, or a fork that cannot be judged.
#[derive(Debug, ClapArgs)]
pub struct Tokens {
    /// One stream: a trace folder, or a file of token ids ([1, 2, 3], or 1 2 3)
    ///
    /// A file holds a JSON array, `[1, 2, 3]`; or ids separated by spaces, line ends or commas, `1 2 3`; or what
    /// `firstdiff run --format json` prints, `{"prompt_ids": [1, 2], "tokens": [3, 4]}`, which tells the prompt
    /// from the output.
    a: PathBuf,
    /// The other, in the same formats
    b: PathBuf,
    /// The model: judges the fork, shows text, and says which ids stop
    #[arg(long)]
    model: Option<PathBuf>,
    /// The arithmetic of both sides, instead of what traces declare or their values show
    #[arg(long, value_name = "PROFILE", value_parser = parse_arithmetic)]
    arithmetic: Option<Arithmetic>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    resources: Resources,
}

pub fn run(c: &Tokens) -> Result<Exit> {
    c.resources.start_threads()?;
    let (a, b) = (Source::open(&c.a)?, Source::open(&c.b)?);
    let model = c.model.as_deref().map(load::model).transpose()?;
    let options = TokensOptions { arithmetic: c.arithmetic.clone(), lanes: LANES };
    let result = tokens(&a, &b, model.as_ref(), &options).map_err(|e| match &c.model {
        Some(path) => anyhow!("{e} (model: {})", path.display()),
        None => anyhow!("{e}"),
    })?;
    match c.format {
        OutputFormat::Text => out::text(&firstdiff_report::tokens_text(&result))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::tokens(&result))?,
    }
    Ok(match result.verdict {
        Verdict::Agrees => Exit::Agrees,
        Verdict::Diverges => Exit::Diverges,
        Verdict::Unmeasured => Exit::Unmeasured,
    })
}
