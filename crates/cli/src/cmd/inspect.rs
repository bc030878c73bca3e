use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args as ClapArgs;
use firstdiff_compare::{CheckOptions, Unloaded, check_with_evidence, inspect};
use firstdiff_model::Model;
use firstdiff_trace::Trace;

use super::check::{DIAGNOSIS, LANES};
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
    /// A trace of it: says too which parameters the engine did not load
    #[arg(long)]
    trace: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    resources: Resources,
}

/// Parameters that the engine did not load.
fn unloaded_in(path: &Path, model: &Model) -> Result<Vec<Unloaded>> {
    let trace = Trace::open(path)?;
    let progress = Progress::new("checking");
    let report = |done, total| progress.report(done, total);
    let options = CheckOptions { lanes: LANES, progress: Some(&report), ..CheckOptions::default() };
    let (check, evidence) = check_with_evidence(&trace, model, &options)?;
    Ok(firstdiff_diagnose::unloaded(&check, &evidence, DIAGNOSIS)?)
}

pub fn run(c: &Inspect) -> Result<Exit> {
    c.resources.start_threads()?;
    let model = load::model(&c.model)?;
    model.checkpoint.bound_residency(c.resources.memory() / 2);
    let progress = Progress::new("inspecting");
    let result = inspect(&model, Some(&|done, total| progress.report(done, total)))?;
    drop(progress);
    let unloaded = c.trace.as_ref().map(|trace| unloaded_in(trace, &model)).transpose()?;
    match c.format {
        OutputFormat::Text => {
            let lines = unloaded
                .iter()
                .flatten()
                .map(|u| format!("not loaded    {}\n", firstdiff_report::unloaded(u)));
            out::text(&(lines.collect::<String>() + &firstdiff_report::inspect_text(&result)))?;
        }
        OutputFormat::Json => {
            let mut value = firstdiff_report::json::inspect(&result);
            if let (Some(value), Some(unloaded)) = (value.as_object_mut(), &unloaded) {
                value.insert("unloaded".into(), serde_json::to_value(unloaded)?);
            }
            out::json(&value)?;
        }
    }
    Ok(if result.sound && unloaded.is_none_or(|u| u.is_empty()) { Exit::Agrees } else { Exit::Diverges })
}
