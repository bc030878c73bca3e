use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use firstdiff_compare::{Check as Checked, CheckOptions, Evidence, Verdict, beside, check_with_evidence};
use firstdiff_diagnose::{Options, Watch, diagnose_watched};
use firstdiff_model::{Model, Simulation};
use firstdiff_reference::{Arithmetic, Budget, PER_SECOND, Work};
use firstdiff_trace::Trace;

use crate::args::{OutputFormat, Resources};
use crate::exit::Exit;
use crate::export::{self, Only};
use crate::interrupt::Interrupt;
use crate::load;
use crate::out;
use crate::progress::Progress;

/// Executions from which the noise of inner values is taken: one to nearest, eight at random. More would
/// narrow the estimate; eight already keep it within a factor of 1.6 for values of any size.
pub const LANES: usize = 9;

/// Seconds of one core that looking for causes may take, unless another budget is given.
pub const SECONDS: f64 = 10.0;

/// How causes are looked for: a few hypotheses are listed beside the one named, and weights are kept, because many
/// hypotheses use the same ones in turn.
pub const DIAGNOSIS: Options =
    Options { memory: 256 << 20, lanes: LANES, listed: 5, budget: SECONDS as u64 * PER_SECOND };

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
    /// Check these layers alone, e.g. 3,17-20; of a folder only the shards that hold them need be there
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers, conflicts_with = "beside")]
    layers: Option<Layers>,
    /// Parts of the replay that run side by side, each on weights of its own; results do not depend on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// One operation in one step: writes what it read, its weights, and both its outputs to the folder of --export
    #[arg(long, value_name = "STEP:TAP", requires = "export", conflicts_with = "beside")]
    only: Option<Only>,
    /// The folder for --only, absent or empty
    #[arg(long, value_name = "DIR", requires = "only")]
    export: Option<PathBuf>,
    /// Do not look for causes: the verdict and the place only
    #[arg(long)]
    no_causes: bool,
    /// Seconds of one core that looking for causes may take. Counted in work, at a fixed rate: the same trace and model
    /// give the same result under any load
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS, value_parser = parse_seconds, conflicts_with = "no_causes")]
    budget: f64,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
    #[command(flatten)]
    resources: Resources,
}

/// Layers by their numbers.
type Layers = Vec<Range<usize>>;

/// `3,17-20`: numbers and ranges, the last one included.
fn parse_layers(text: &str) -> Result<Layers, String> {
    let number = |n: &str| n.trim().parse::<usize>().ok().filter(|&n| n < 1 << 20);
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = number(first)?..number(last)? + 1;
        (!range.is_empty()).then_some(range)
    };
    let ranges: Option<Layers> = text.split(',').map(part).collect();
    ranges.ok_or_else(|| format!("'{text}' names no layers; write 3,17-20"))
}

/// `10`, `0.5`.
fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0);
    seconds.ok_or_else(|| format!("invalid budget '{text}': expected seconds, e.g. 60"))
}

/// An arithmetic by its name.
pub fn parse_arithmetic(name: &str) -> Result<Arithmetic, String> {
    Arithmetic::from_name(name).ok_or_else(|| format!("known profiles are {}", Arithmetic::NAMES.join(", ")))
}

pub fn run(c: &Check) -> Result<Exit> {
    c.resources.start_threads()?;
    let trace = Trace::open(&c.trace)?;
    let simulation = simulation(c.arithmetic.as_ref(), &trace);
    let model = match c.layers {
        Some(_) => load::part_of_model(&c.model, simulation)?,
        None => load::simulating(&c.model, simulation)?,
    };
    // Half of what may be used, for what is mapped; the rest is for values and dequantised weights.
    model.checkpoint.bound_residency(c.resources.memory() / 2);
    if let Some(other) = &c.beside {
        return three_way(c, &trace, &Trace::open(other)?, &model);
    }
    if let (Some(only), Some(folder)) = (&c.only, &c.export) {
        return export::run(&trace, &model, c.arithmetic.clone(), only, folder);
    }
    let options = CheckOptions {
        arithmetic: c.arithmetic.clone(),
        jobs: usize::from(c.jobs),
        layers: c.layers.clone(),
        ..CheckOptions::default()
    };
    let causes = Options {
        // What may be used besides what is mapped and the values: results do not depend on it.
        memory: DIAGNOSIS.memory.max(c.resources.memory() / 4),
        budget: Budget::seconds(c.budget).limit(),
        ..DIAGNOSIS
    };
    verdict(&trace, &model, options, (!c.no_causes).then_some(causes), c.format, &c.model)
}

/// What the engine simulates: by the arithmetic given, else by the trace. What is no name of a simulation is refused
/// where the arithmetic is read.
fn simulation(given: Option<&Arithmetic>, trace: &Trace) -> Option<Simulation> {
    if let Some(arithmetic) = given {
        return arithmetic.simulation;
    }
    let declared = trace.manifest.arithmetic.as_ref()?.other.get("simulates")?;
    Simulation::from_name(declared.as_str()?)
}

/// Checks both traces and says which is the worse one. The exit code is that of the first trace.
fn three_way(c: &Check, trace: &Trace, other: &Trace, model: &Model) -> Result<Exit> {
    let progress = Progress::new("checking both");
    let report = |done, total| progress.report(done, total);
    let options = CheckOptions {
        arithmetic: c.arithmetic.clone(),
        lanes: LANES,
        progress: Some(&report),
        jobs: usize::from(c.jobs),
        ..CheckOptions::default()
    };
    let (check, beside) =
        beside(trace, other, model, &options).map_err(|e| anyhow!("{e} (model: {})", c.model.display()))?;
    drop(progress);
    match c.format {
        OutputFormat::Text => out::text(&firstdiff_report::beside_text(&check, &beside))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::check_beside(&check, &beside))?,
    }
    Ok(exit(check.verdict))
}

/// Checks, looks for causes where that is asked for, and prints; shared with the demo. The first verdict goes to stderr
/// before causes are looked for.
pub fn verdict(
    trace: &Trace,
    model: &Model,
    options: CheckOptions,
    causes: Option<Options>,
    format: OutputFormat,
    path: &Path,
) -> Result<Exit> {
    let interrupt = Interrupt::new(format);
    let progress = Progress::new("checking");
    let report = |done, total| progress.report(done, total);
    // Each weight is read once for all steps: there is nothing to keep.
    let options = CheckOptions { memory: 0, lanes: LANES, progress: Some(&report), ..options };
    let (mut result, evidence) = check_with_evidence(trace, model, &options)
        .map_err(|e| anyhow!("{e} (model: {})", path.display()))?;
    drop(progress);
    interrupt.know(&result);
    if let Some(causes) = causes {
        if let Some(first) = firstdiff_report::first_verdict(&result) {
            eprintln!("{}", out::printable(&first));
        }
        let search = Search { interrupt: &interrupt, progress: Progress::new("looking for causes") };
        look_for_causes(&mut result, &evidence, causes, &search);
    }
    interrupt.finish();
    match format {
        OutputFormat::Text => out::text(&firstdiff_report::check_text(&result))?,
        OutputFormat::Json => out::json(&firstdiff_report::json::check(&result))?,
    }
    Ok(exit(result.verdict))
}

/// Checks and looks for causes.
pub fn judge(trace: &Trace, model: &Model, options: CheckOptions, path: &Path) -> Result<Checked> {
    let options = CheckOptions { memory: 0, lanes: LANES, ..options };
    let (mut result, evidence) = check_with_evidence(trace, model, &options)
        .map_err(|e| anyhow!("{e} (model: {})", path.display()))?;
    look_for_causes(&mut result, &evidence, DIAGNOSIS, &());
    Ok(result)
}

/// A hypothesis may need a weight that is not here or cannot be read: the verdict stands.
fn look_for_causes(result: &mut Checked, evidence: &Evidence, options: Options, watch: &dyn Watch) {
    if let Err(e) = diagnose_watched(result, evidence, options, watch) {
        result.notes.push(format!("causes were not all looked for: {e}"));
    }
}

/// Who looks on while causes are looked for.
struct Search<'a> {
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl Watch for Search<'_> {
    fn progress(&self, done: Work, total: Work) {
        // Thousandths: the bar counts in the machine's own numbers.
        let total = (total / 1000).max(1);
        self.progress.report((done / total).min(1000) as usize, 1000);
    }

    fn known(&self, check: &Checked) {
        self.interrupt.know(check);
    }
}

/// The exit code of a verdict.
pub fn exit(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Agrees => Exit::Agrees,
        Verdict::Diverges => Exit::Diverges,
        Verdict::Unmeasured => Exit::Unmeasured,
    }
}

#[cfg(test)]
mod tests {
    use super::parse_layers;

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(parse_layers("3,17-20"), Ok(vec![3..4, 17..21]));
        for wrong in ["", "x", "5-3", "1,,2", "-1", "1-"] {
            assert!(parse_layers(wrong).is_err(), "{wrong}");
        }
    }
}
