//! `cargo dev stories`: writes docs/STORIES.md from engines rebuilt with the bugs of their day.

use std::process::Command;

use anyhow::Result;

use crate::{models, python, workspace};

pub fn run() -> Result<()> {
    with_models("stories", &[], "the stories")
}

/// `cargo dev bench diagnose`: what naming a cause costs on real models.
pub fn diagnosis_cost(rounds: usize) -> Result<()> {
    with_models("diagnosis_cost.py", &["--rounds", &rounds.to_string()], "the cost of a diagnosis")
}

/// A script that takes the built program and the real models.
fn with_models(script: &str, args: &[&str], what: &str) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let python = python::interpreter()?;
    let scripts = workspace::root().join("crates/dev/python");
    let mut command = Command::new(&python);
    command.arg(scripts.join(script)).env("PYTHONPATH", &scripts).env("OMP_NUM_THREADS", "1");
    command.arg("--firstdiff").arg(workspace::target().join("release/firstdiff"));
    command.arg("--models").arg(models::folder(&python)?).args(args);
    workspace::run(what, &mut command)
}
