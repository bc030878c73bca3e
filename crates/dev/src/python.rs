//! The Python environment of tests and benchmarks, made once under the target folder.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::workspace;

/// Packages from the package index. torch brings its CUDA libraries along: about 5 GB.
const PACKAGES: &[&str] = &[
    "torch",
    "transformers>=5",
    "numpy",
    "safetensors",
    "gguf",
    "jinja2",
    "pytest",
    "accelerate",
    "compressed-tensors",
    "nvidia-modelopt",
];

/// The interpreter of the environment, which is created and filled on the first call.
pub fn interpreter() -> Result<PathBuf> {
    let folder = workspace::cache()?.join("python");
    let python = folder.join("bin").join("python");
    let done = folder.join("complete");
    if !done.exists() {
        eprintln!("Making a Python environment in {} (several GB, some minutes).", folder.display());
        workspace::run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut install = pip(&python);
        workspace::run("pip install torch, transformers and others", install.arg("install").args(PACKAGES))?;
        eprintln!("llama-cpp-python is compiled from source: about ten minutes on two cores.");
        let mut install = pip(&python);
        install.env("CMAKE_BUILD_PARALLEL_LEVEL", cores().to_string());
        workspace::run("pip install llama-cpp-python", install.args(["install", "llama-cpp-python"]))?;
        std::fs::write(&done, b"")?;
    }
    let mut install = pip(&python);
    install.args(["install", "--no-deps", "--editable"]).arg(workspace::root().join("recorders/python"));
    workspace::run("pip install the recorders", &mut install)?;
    Ok(python)
}

fn pip(python: &PathBuf) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "--disable-pip-version-check", "--quiet"]);
    command
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
