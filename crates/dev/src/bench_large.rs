//! `cargo dev bench large`: a checkpoint larger than memory, checked by the built program.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{python, workspace};

/// A checkpoint larger than memory, checked from a recorded trace: time for each layer, and peak memory
#[derive(Args)]
pub struct Large {
    /// The shape: deepseek_v4 (Flash, FP8 and FP4) or qwen3_moe (235B-A22B, FP8)
    #[arg(long, default_value = "deepseek_v4")]
    family: String,
    /// Layers
    #[arg(long, default_value_t = 12)]
    layers: usize,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 8)]
    tokens: usize,
    /// What `--memory` is given
    #[arg(long, default_value = "2G")]
    memory: String,
    /// What `--jobs` is given
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

pub fn run(c: &Large) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let mut bench = Command::new(python::interpreter()?);
    bench.arg(workspace::root().join("crates/dev/python/large.py"));
    bench.arg("--firstdiff").arg(workspace::target().join("release/firstdiff"));
    bench.arg("--folder").arg(workspace::target().join("dev/large"));
    bench.args(["--family", &c.family, "--layers", &c.layers.to_string()]);
    bench.args(["--tokens", &c.tokens.to_string(), "--memory", &c.memory]);
    bench.args(["--jobs", &c.jobs.to_string()]);
    workspace::run("large", &mut bench)
}
