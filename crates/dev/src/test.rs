//! `cargo dev test`.

use std::path::Path;
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
    /// The transformers recorder's tests only, with the oldest transformers that it supports
    #[arg(long, conflicts_with_all = ["rust_only", "newest"])]
    oldest: bool,
    /// The transformers recorder's tests only, with the newest transformers that the package index has
    #[arg(long, conflicts_with = "rust_only")]
    newest: bool,
    /// Passed to pytest
    #[arg(last = true)]
    pytest: Vec<String>,
}

const RECORDERS: &str = "recorders/python/tests";

/// Folders of Python tests, what each is about, and whether its files may run side by side.
const SUITES: &[(&str, &str, bool)] = &[
    (RECORDERS, "the recorders, against real transformers and llama.cpp", true),
    ("crates/checkpoint/tests/python", "dequantisation and tokenizers, against gguf and llama.cpp", false),
    ("crates/engine/tests/python", "the choice of tokens, against transformers", false),
    ("recorders/c/tests", "the C header under sanitizers, and writers that are killed", false),
    ("tests", "the program, end to end", false),
];

pub fn run(c: &Test) -> Result<()> {
    if c.oldest || c.newest {
        let interpreter = python::interpreter()?;
        let (what, overlay) = match c.oldest {
            true => ("oldest", python::oldest(&interpreter)?),
            false => ("newest", python::newest(&interpreter)?),
        };
        return with_overlay(&interpreter, what, &overlay, &c.pytest);
    }
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
    for (folder, what, beside) in SUITES {
        let mut pytest = pytest(&interpreter, *beside);
        pytest.arg(folder).arg("--models").arg(&models);
        match *folder {
            "tests" | "recorders/c/tests" => pytest.arg("--firstdiff").arg(release.join("firstdiff")),
            "crates/checkpoint/tests/python" | "crates/engine/tests/python" => {
                pytest.arg("--firstdiff-target").arg(&release)
            }
            _ => &mut pytest,
        };
        if let Err(error) = workspace::run(&format!("pytest {folder}: {what}"), pytest.args(&c.pytest)) {
            failed.push(format!("{error:#}"));
        }
    }
    let oldest = python::oldest(&interpreter)?;
    if let Err(error) = with_overlay(&interpreter, "oldest", &oldest, &c.pytest) {
        failed.push(format!("{error:#}"));
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    eprintln!("== every test passed");
    Ok(())
}

/// The transformers recorder's tests, with the packages of an overlay before the environment's own.
fn with_overlay(interpreter: &Path, what: &str, overlay: &Path, further: &[String]) -> Result<()> {
    let mut pytest = pytest(interpreter, true);
    for file in std::fs::read_dir(workspace::root().join(RECORDERS))? {
        let file = file?.path();
        if file.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("test_transformers")) {
            pytest.arg(file);
        }
    }
    pytest.env("PYTHONPATH", overlay).args(further);
    workspace::run(&format!("pytest {RECORDERS}, with the {what} transformers"), &mut pytest)
}

fn pytest(interpreter: &Path, beside: bool) -> Command {
    let mut pytest = Command::new(interpreter);
    pytest.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"]);
    if beside {
        // a file's tests share what they make, so a file stays in one process; each process has one thread
        pytest.args(["-n", "2", "--dist", "loadfile"]).env("OMP_NUM_THREADS", "1");
    }
    pytest
}
