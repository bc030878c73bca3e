//! `cargo dev wheel`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{python, workspace};

/// Build the wheel, look at it, install it in an empty environment and run the demo there.
#[derive(Args)]
pub struct Wheel {
    /// Where the wheel goes
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The oldest C library that the wheel runs with. zig links for it, whatever this machine has.
const LIBRARY: &str = "manylinux_2_28";

/// Bytes that the wheel may have.
const LARGEST: u64 = 25 << 20;

impl Wheel {
    pub fn run(&self) -> Result<()> {
        let out =
            self.out.clone().map_or_else(|| Ok(workspace::target().join("wheels")), std::path::absolute)?;
        fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        let tools = python::tools("wheel")?;
        let path = std::env::join_paths(
            tools
                .parent()
                .map(Path::to_path_buf)
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )?;
        let scratch = tempfile::tempdir()?;
        let mut build = Command::new(&tools);
        build.args(["-m", "maturin", "build", "--release", "--locked", "--zig", "--compatibility", LIBRARY]);
        build.env("PATH", &path).arg("--out").arg(scratch.path());
        // The target folder of this program: objects are reused.
        build.env("CARGO_TARGET_DIR", workspace::target());
        workspace::run("maturin build", &mut build)?;
        let wheel = only_file(scratch.path())?;
        let name = wheel.file_name().context("a wheel without a name")?.to_owned();
        let size = fs::metadata(&wheel)?.len();
        ensure!(size < LARGEST, "the wheel has {size} bytes, more than {LARGEST}");

        eprintln!("== auditwheel show");
        let show = Command::new(&tools)
            .env("PATH", &path)
            .args(["-m", "auditwheel", "show"])
            .arg(&wheel)
            .output()?;
        let text = String::from_utf8_lossy(&show.stdout).replace('\n', " ");
        ensure!(show.status.success(), "auditwheel: {}", String::from_utf8_lossy(&show.stderr));
        let tag = consistent(&text).with_context(|| format!("auditwheel says no platform: {text}"))?;
        ensure!(older(&tag, LIBRARY), "the wheel needs {tag}, newer than {LIBRARY}");
        eprintln!("{}: {:.1} MB, {tag}", name.to_string_lossy(), size as f64 / 1e6);

        let empty = scratch.path().join("empty");
        workspace::run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&empty))?;
        let python = empty.join("bin/python");
        let pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install"];
        workspace::run("pip install the wheel", Command::new(&python).args(pip).arg(&wheel))?;
        // Outside the sources, as its user would.
        let installed = |program: &Path, args: &[&str]| -> Result<()> {
            let output = Command::new(program).args(args).current_dir(scratch.path()).output()?;
            if !output.status.success() {
                bail!("{} {args:?}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
            }
            Ok(())
        };
        eprintln!("== the installed program and recorders");
        installed(&empty.join("bin/firstdiff"), &["demo"])?;
        installed(&python, &["-m", "firstdiff", "demo"])?;
        installed(&python, &["-c", "import firstdiff, firstdiff.trace; from firstdiff import _taps"])?;
        fs::copy(&wheel, out.join(&name)).with_context(|| format!("cannot write to {}", out.display()))?;
        println!("{}", out.join(&name).display());
        Ok(())
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    match files.as_slice() {
        [file] => Ok(file.path()),
        _ => bail!("{} files in {}, one wheel was expected", files.len(), folder.display()),
    }
}

/// The platform in auditwheel's sentence: `... is consistent with the following platform tag: "manylinux_2_28_x86_64"`.
fn consistent(text: &str) -> Option<String> {
    let at = text.find("manylinux_2_")?;
    let tag: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    Some(tag)
}

/// Whether a tag names the same C library or an older one.
fn older(tag: &str, limit: &str) -> bool {
    let minor = |tag: &str| tag.split('_').nth(2).and_then(|n| n.parse::<u32>().ok());
    minor(tag).zip(minor(limit)).is_some_and(|(tag, limit)| tag <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_is_read_and_compared_as_numbers() {
        let text = "x.whl is consistent with the following platform tag: \"manylinux_2_17_x86_64\".";
        let tag = consistent(text).unwrap();
        assert_eq!(tag, "manylinux_2_17_x86_64");
        assert!(older(&tag, LIBRARY) && older("manylinux_2_5_x86_64", LIBRARY));
        assert!(!older("manylinux_2_34_x86_64", LIBRARY));
        assert_eq!(consistent("linux_x86_64"), None);
    }
}
