use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use firstdiff_compare::{CheckOptions, Verdict, beside, check_with_evidence};
use firstdiff_diagnose::diagnose;
use firstdiff_model::Model;
use firstdiff_reference::Arithmetic;
use firstdiff_trace::Trace;

use crate::args::{OutputFormat, Resources};
use crate::exit::Exit;
use crate::export::{self, Only};
use crate::load;
use crate::out;
use crate::progress::Progress;

/// Executions from which the noise of inner values is taken: one to nearest, eight at random. More would
/// narrow the estimate; eight already keep it within a factor of 1.6 for values of any size.
pub const LANES: usize = 9;

/// How causes are looked for: a few hypotheses are listed beside the one named, and weights are kept, because many
/// hypotheses use the same ones in turn.
pub const DIAGNOSIS: firstdiff_diagnose::Options =
    firstdiff_diagnose::Options { memory: 256 << 20, lanes: LANES, listed: 5 };

/// Hold an engine's trace against its model.
///
/// Every operation is replayed from the engine's own recorded values and its result compared with
/// the recorded one, in units of what rounding in the engine's arithmetic explains.
#[derive(Debug, ClapArgs)]
pub struct Check {
    /// The trace: a folder written by a recorder
    trace: PathBuf,
    /// The model it was recorded from: a GGUF file, or a folder with config.json and safetensors
    #[arg(long)]
    model: PathBuf,
    /// The engine's arithmetic, instead of what the trace declares or its values show
    #[arg(long, value_name = "PROFILE", value_parser = parse_arithmetic)]
    arithmetic: Option<Arithmetic>,
    /// A second trace of the same tokens: each is held against the model, and the worse one is named
    #[arg(long, value_name = "TRACE")]
    beside: Option<PathBuf>,
    /// One operation in one step: writes what it read, its weights, and both its outputs to the folder of --export
    #[arg(long, value_name = "STEP:TAP", requires = "export", conflicts_with = "beside")]
    only: Option<Only>,
    /// The folder for --only, absent or empty
    #[arg(long, value_name = "DIR", requires = "only")]
    export: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    resources: Resources,
}

/// An arithmetic by its name.
pub fn parse_arithmetic(name: &str) -> Result<Arithmetic, String> {
    Arithmetic::from_name(name).ok_or_else(|| format!("known profiles are {}", Arithmetic::NAMES.join(", ")))
}

pub fn run(c: &Check) -> Result<Exit> {
    c.resources.start_threads()?;
    let trace = Trace::open(&c.trace)?;
    let model = load::model(&c.model)?;
    if let Some(other) = &c.beside {
        return three_way(c, &trace, &Trace::open(other)?, &model);
    }
    if let (Some(only), Some(folder)) = (&c.only, &c.export) {
        return export::run(&trace, &model, c.arithmetic.clone(), only, folder);
    }
    verdict(&trace, &model, c.arithmetic.clone(), c.format, &c.model)
}

/// Checks both traces and says which is the worse one. The exit code is that of the first trace.
fn three_way(c: &Check, trace: &Trace, other: &Trace, model: &Model) -> Result<Exit> {
    let progress = Progress::new("checking both");
    let report = |done, total| progress.report(done, total);
    let options =
        CheckOptions { arithmetic: c.arithmetic.clone(), memory: 0, lanes: LANES, progress: Some(&report) };
    let (check, beside) =
        beside(trace, other, model, &options).map_err(|e| anyhow!("{e} (model: {})", c.model.display()))?;
    drop(progress);
    match c.format {
        OutputFormat::Text => out::text(&firstdiff_report::beside_text(&check, &beside))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::check_beside(&check, &beside))?,
    }
    Ok(exit(check.verdict))
}

/// Checks and prints; shared with the demo.
pub fn verdict(
    trace: &Trace,
    model: &Model,
    arithmetic: Option<Arithmetic>,
    format: OutputFormat,
    path: &Path,
) -> Result<Exit> {
    let progress = Progress::new("checking");
    let report = |done, total| progress.report(done, total);
    let result = judge(trace, model, arithmetic, path, Some(&report))?;
    drop(progress);
    match format {
        OutputFormat::Text => out::text(&firstdiff_report::check_text(&result))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::check(&result))?,
    }
    Ok(exit(result.verdict))
}

/// Checks, and looks for causes.
pub fn judge(
    trace: &Trace,
    model: &Model,
    arithmetic: Option<Arithmetic>,
    path: &Path,
    progress: Option<&(dyn Fn(usize, usize) + Sync)>,
) -> Result<firstdiff_compare::Check> {
    // Each weight is read once for all steps: there is nothing to keep.
    let options = CheckOptions { arithmetic, memory: 0, lanes: LANES, progress };
    let (mut result, evidence) = check_with_evidence(trace, model, &options)
        .map_err(|e| anyhow!("{e} (model: {})", path.display()))?;
    diagnose(&mut result, &evidence, DIAGNOSIS).map_err(|e| anyhow!("{e} (model: {})", path.display()))?;
    Ok(result)
}

/// The exit code of a verdict.
pub fn exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Agrees => Exit::Agrees,
        Verdict::Diverges => Exit::Diverges,
        Verdict::Unmeasured => Exit::Unmeasured,
    }
}
