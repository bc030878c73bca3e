use std::path::PathBuf;

use anyhow::Result;
use clap::Args as ClapArgs;
use firstdiff_compare::diff;
use firstdiff_trace::Trace;

use crate::args::OutputFormat;
use crate::exit::Exit;

/// Compare two traces of the same tokens, without a model.
///
/// Nothing is replayed: an error upstream shows in everything after it. Exit code 0: equal up to
/// what their formats round; 1: not; 3: no value in common.
#[derive(Debug, ClapArgs)]
pub struct Diff {
    /// One trace
    a: PathBuf,
    /// The other
    b: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

pub fn run(c: &Diff) -> Result<Exit> {
    let result = diff(&Trace::open(&c.a)?, &Trace::open(&c.b)?)?;
    match c.format {
        OutputFormat::Text => print!("{}", firstdiff_report::diff_text(&result)),
        OutputFormat::Json => println!("{:#}", firstdiff_report::json::diff(&result)),
    }
    Ok(match (&result.first, result.first_other_token) {
        _ if result.rows.is_empty() => Exit::Unmeasured,
        (None, None) => Exit::Agrees,
        _ => Exit::Diverges,
    })
}
