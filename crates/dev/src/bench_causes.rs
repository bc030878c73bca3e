//! `cargo dev bench causes`: planted faults and the causes that the built program names.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{python, workspace};

/// Every planted fault: located, named, wrongly named, by class.
#[derive(Args)]
pub struct Causes {
    /// Only faults whose title contains one of these
    words: Vec<String>,
    /// Only these arithmetics, with commas between: f32, bf16, f16, q8, q4
    #[arg(long)]
    arithmetic: Option<String>,
    /// What is recorded: everything, or what hooks on modules show
    #[arg(long, default_value = "all", value_parser = ["all", "modules"])]
    taps: String,
    /// A line for every trace
    #[arg(long)]
    verbose: bool,
}

pub fn run(c: &Causes) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let mut bench = Command::new(python::interpreter()?);
    bench.arg(workspace::root().join("crates/dev/python/causes"));
    bench.arg("--firstdiff").arg(workspace::target().join("release/firstdiff"));
    bench.args(["--taps", &c.taps]).args(&c.words);
    if let Some(arithmetic) = &c.arithmetic {
        bench.args(["--arithmetic", arithmetic]);
    }
    if c.verbose {
        bench.arg("--verbose");
    }
    workspace::run("causes", bench.env("OMP_NUM_THREADS", "1"))
}
