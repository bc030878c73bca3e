//! `cargo dev bench verdicts`: right engines and planted faults, judged by the built program.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{models, python, workspace};

/// Right engines that must agree, planted faults that must be found, and how small they may be.
#[derive(Args)]
pub struct Verdicts {
    /// Parts to run, with commas between: healthy, real, faults, promises, "real faults", limits
    #[arg(long)]
    only: Option<String>,
    /// Cases whose name contains this
    #[arg(long = "match")]
    matching: Option<String>,
    /// Processes
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

pub fn run(c: &Verdicts) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let interpreter = python::interpreter()?;
    let mut bench = Command::new(&interpreter);
    bench.arg(workspace::root().join("crates/dev/python/verdicts"));
    bench.arg("--firstdiff").arg(workspace::target().join("release/firstdiff"));
    bench.arg("--models").arg(models::folder(&interpreter)?);
    bench.arg("--jobs").arg(c.jobs.to_string());
    for (option, value) in [("--only", &c.only), ("--match", &c.matching)] {
        if let Some(value) = value {
            bench.arg(option).arg(value);
        }
    }
    // One thread a process: the processes share the cores.
    workspace::run("verdicts", bench.env("OMP_NUM_THREADS", "1"))
}
