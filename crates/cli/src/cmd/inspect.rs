use std::path::PathBuf;

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::args::OutputFormat;
use crate::exit::Exit;

/// Look a model over before anything runs.
#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// The model
    model: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

pub fn run(c: &Inspect) -> Result<Exit> {
    let _ = (&c.model, c.format);
    anyhow::bail!("not yet")
}
