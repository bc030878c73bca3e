//! `cargo dev test`.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{models, python, workspace};

/// Run every test.
#[derive(Args)]
pub struct Test {
    /// Rust tests only: seconds instead of the better part of an hour
    #[arg(long)]
    rust_only: bool,
    /// Passed to pytest
    #[arg(last = true)]
    pytest: Vec<String>,
}

/// Folders of Python tests, and the options each takes.
const SUITES: &[(&str, &str)] = &[
    ("recorders/python/tests", "the recorders, against real transformers and llama.cpp"),
    ("crates/checkpoint/tests/python", "dequantisation and tokenizers, against gguf and llama.cpp"),
    ("crates/engine/tests/python", "the choice of tokens, against transformers"),
    ("tests", "the program, end to end"),
];

pub fn run(c: &Test) -> Result<()> {
    let cargo = || Command::new("cargo");
    workspace::run("cargo test", cargo().args(["test", "--quiet", "--workspace"]))?;
    if c.rust_only {
        return Ok(());
    }
    let release = ["build", "--quiet", "--release", "--package"];
    workspace::run("cargo build", cargo().args(release).arg("firstdiff"))?;
    let mut examples = cargo();
    workspace::run(
        "cargo build examples",
        examples.args(release).args(["firstdiff-checkpoint", "--package", "firstdiff-engine", "--examples"]),
    )?;

    let interpreter = python::interpreter()?;
    let models = models::folder(&interpreter)?;
    let release = workspace::target().join("release");
    let mut failed = Vec::new();
    for (folder, what) in SUITES {
        let mut pytest = Command::new(&interpreter);
        pytest.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"]).arg(folder);
        pytest.arg("--models").arg(&models);
        match *folder {
            "tests" => pytest.arg("--firstdiff").arg(release.join("firstdiff")),
            "crates/checkpoint/tests/python" | "crates/engine/tests/python" => {
                pytest.arg("--firstdiff-target").arg(&release)
            }
            _ => &mut pytest,
        };
        if let Err(error) = workspace::run(&format!("pytest {folder}: {what}"), pytest.args(&c.pytest)) {
            failed.push(format!("{error:#}"));
        }
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    eprintln!("== every test passed");
    Ok(())
}
