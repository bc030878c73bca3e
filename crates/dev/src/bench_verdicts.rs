//! `cargo dev bench verdicts`: right engines and planted faults, judged by the built program.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{models, python, workspace};

/// Right engines that must agree, planted faults that must be found, and how small they may be.
#[derive(Args)]
pub struct Verdicts {
    /// Parts to run, with commas between: healthy, wide, real, faults, "undeclared faults", "wide faults", promises,
    /// "real faults", limits
    #[arg(long)]
    only: Option<String>,
    /// Cases whose name contains this
    #[arg(long = "match")]
    matching: Option<String>,
    /// Run so many cases, spread over all kinds; always the same ones
    #[arg(long)]
    sample: Option<usize>,
    /// Another firstdiff, which judges the same traces: the tables show both
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
    /// Append every outcome to this file, and do not run again what it has of the same binary
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Seconds of processor time that one check may take
    #[arg(long, value_name = "SECONDS")]
    limit: Option<f64>,
    /// Count the cases by part and kind, and run none
    #[arg(long)]
    list: bool,
    /// Processes
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// Parts that need models of the hub; what no `--only` names is every part.
fn needs_models(only: Option<&str>) -> bool {
    only.is_none_or(|parts| parts.split(',').any(|part| part.trim().starts_with("real")))
}

pub fn run(c: &Verdicts) -> Result<()> {
    let interpreter = python::interpreter()?;
    let mut bench = Command::new(&interpreter);
    bench.arg(workspace::root().join("crates/dev/python/verdicts"));
    bench.arg("--firstdiff").arg(workspace::target().join("release/firstdiff"));
    bench.arg("--jobs").arg(c.jobs.to_string());
    for (option, value) in [("--only", &c.only), ("--match", &c.matching)] {
        if let Some(value) = value {
            bench.arg(option).arg(value);
        }
    }
    for (option, value) in [("--against", &c.against), ("--save", &c.save)] {
        if let Some(value) = value {
            bench.arg(option).arg(std::path::absolute(value)?);
        }
    }
    if let Some(count) = c.sample {
        bench.arg("--sample").arg(count.to_string());
    }
    if let Some(seconds) = c.limit {
        bench.arg("--limit").arg(seconds.to_string());
    }
    if c.list {
        bench.arg("--list");
    } else {
        let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
        workspace::run("cargo build", Command::new("cargo").args(build))?;
        if needs_models(c.only.as_deref()) {
            bench.arg("--models").arg(models::folder(&interpreter)?);
        }
    }
    // One thread a process: the processes share the cores.
    workspace::run("verdicts", bench.env("OMP_NUM_THREADS", "1"))
}
