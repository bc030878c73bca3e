use std::path::PathBuf;

use anyhow::Result;
use clap::Args as ClapArgs;
use firstdiff_compare::inspect;

use crate::args::{OutputFormat, Resources};
use crate::exit::Exit;
use crate::load;
use crate::out;
use crate::progress::Progress;

/// Look a model over before anything runs.
///
/// Every tensor is read and its use listed; zero, constant, non-finite and absurd values are
/// pointed out; every configuration value that changes the numerics is shown with its origin.
/// Exit code 0: sound; 1: something is suspicious.
#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// The model
    model: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    resources: Resources,
}

pub fn run(c: &Inspect) -> Result<Exit> {
    c.resources.start_threads()?;
    let model = load::model(&c.model)?;
    model.checkpoint.bound_residency(c.resources.memory() / 2);
    let progress = Progress::new("inspecting");
    let result = inspect(&model, Some(&|done, total| progress.report(done, total)))?;
    drop(progress);
    match c.format {
        OutputFormat::Text => out::text(&firstdiff_report::inspect_text(&result))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::inspect(&result))?,
    }
    Ok(if result.sound { Exit::Agrees } else { Exit::Diverges })
}
