use std::path::PathBuf;

use anyhow::Result;
use clap::Args as ClapArgs;
use firstdiff_compare::{DiffVerdict, diff};
use firstdiff_trace::Trace;

use crate::args::{OutputFormat, Resources};
use crate::exit::Exit;
use crate::out;

/// Compare two traces of the same tokens, without a model.
///
/// Says first whether they can be compared at all: a run that does not repeat, other weights, another
/// arithmetic. Sequences are paired by their prompts. Nothing is replayed: an error upstream shows in everything after it. Exit code 0: equal up
/// to what rounding in their formats leaves; 1: not; 3: no value in common.
#[derive(Debug, ClapArgs)]
pub struct Diff {
    /// One trace
    a: PathBuf,
    /// The other
    b: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    /// Threads; results do not depend on it [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

pub fn run(c: &Diff) -> Result<Exit> {
    Resources { memory: None, threads: c.threads }.start_threads()?;
    let result = diff(&Trace::open(&c.a)?, &Trace::open(&c.b)?)?;
    match c.format {
        OutputFormat::Text => out::text(&firstdiff_report::diff_text(&result))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::diff(&result))?,
    }
    Ok(match result.verdict {
        DiffVerdict::Identical | DiffVerdict::Agrees | DiffVerdict::OtherArithmetic => Exit::Agrees,
        DiffVerdict::NonDeterministic | DiffVerdict::OtherWeights | DiffVerdict::Differs => Exit::Diverges,
        DiffVerdict::Unmeasured => Exit::Unmeasured,
    })
}
