//! Where things are, and running programs there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").components().collect()
}

/// Where fetched and built things are kept between runs.
pub fn cache() -> Result<PathBuf> {
    let path = target().join("dev");
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Cargo's target folder: the one this program was built in.
pub fn target() -> PathBuf {
    let built = std::env::current_exe().ok();
    let folder = built.as_deref().and_then(Path::parent).and_then(Path::parent);
    folder.map_or_else(|| root().join("target"), Path::to_path_buf)
}

/// Says what is being run, runs it, and fails if it does.
pub fn run(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("== {what}");
    command.current_dir(root());
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what}: {status}");
    }
    Ok(())
}
