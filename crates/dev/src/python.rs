//! Python environments of tests and benchmarks, made once under the target folder from the locks in
//! `crates/dev/python/locks`.
//!
//! A folder is named by what it was made from, so a changed lock makes a new one. Other releases of transformers lie in
//! overlays: folders with the few packages that differ, which stand before the environment's own on the search path.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace;

/// What a lock is for: `name==version` and a hash for each file, which are files of this platform.
pub const PLATFORM: &str = "Linux x86_64, CPython 3.11";

/// The interpreter of the environment, which is created and filled on the first call.
pub fn interpreter() -> Result<PathBuf> {
    let locked = platform()? == PLATFORM;
    let wheels = locks().join(if locked { "tests.lock" } else { "tests.in" });
    let compiled = locks().join("tests-compiled.lock");
    let folder = made_from("python", if locked { vec![&wheels, &compiled] } else { vec![&wheels] })?;
    let python = folder.join("bin").join("python");
    let done = folder.join("complete");
    if !done.exists() {
        eprintln!("Making a Python environment in {} (several GB, some minutes).", folder.display());
        workspace::run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut install = pip(&python);
        install.env("CMAKE_BUILD_PARALLEL_LEVEL", cores().to_string());
        if locked {
            let mut wheels_first = pip(&python);
            wheels_first.args([
                "install",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
                "--requirement",
            ]);
            workspace::run("pip install torch, transformers and others", wheels_first.arg(&wheels))?;
            eprintln!("llama-cpp-python is compiled from source: about ten minutes on two cores.");
            install.args([
                "install",
                "--no-deps",
                "--no-build-isolation",
                "--require-hashes",
                "--requirement",
            ]);
            workspace::run("pip install llama-cpp-python", install.arg(&compiled))?;
        } else {
            eprintln!("The locks are for {PLATFORM}. This is {}: packages are taken by name.", platform()?);
            workspace::run(
                "pip install torch and others",
                install.args(["install", "--requirement"]).arg(&wheels),
            )?;
        }
        std::fs::write(&done, b"").with_context(|| format!("cannot write {}", done.display()))?;
    }
    find_recorders(&python)?;
    Ok(python)
}

/// The interpreter of a small environment with nothing but the packages of one lock, `NAME.lock`.
pub fn tools(name: &str) -> Result<PathBuf> {
    let lock = locks().join(format!("{name}.lock"));
    let folder = made_from(name, vec![&lock])?;
    let (python, done) = (folder.join("bin/python"), folder.join("complete"));
    if !done.exists() {
        workspace::run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut install = pip(&python);
        install.args(["install", "--no-deps", "--require-hashes", "--requirement"]).arg(&lock);
        workspace::run(&format!("pip install the packages of {name}.lock"), &mut install)?;
        std::fs::write(&done, b"").with_context(|| format!("cannot write {}", done.display()))?;
    }
    Ok(python)
}

/// The environment imports the recorders from their sources: the package itself would build the program first.
fn find_recorders(python: &Path) -> Result<()> {
    let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(python).args(["-c", script]).output().context("cannot start Python")?;
    anyhow::ensure!(output.status.success(), "{}: {}", python.display(), output.status);
    let link = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("firstdiff-sources.pth");
    let sources = workspace::root().join("recorders/python/src");
    std::fs::write(&link, format!("{}\n", sources.display()))
        .with_context(|| format!("cannot write {}", link.display()))
}

/// A folder with the oldest transformers that the recorders support, and what must differ with it.
pub fn oldest(python: &Path) -> Result<PathBuf> {
    if platform()? == PLATFORM {
        return overlay(python, "oldest", &locks().join("oldest.lock"));
    }
    resolved(python, "oldest", &locks().join("oldest.in"))
}

/// A folder with the newest transformers that the package index has today.
pub fn newest(python: &Path) -> Result<PathBuf> {
    let names = workspace::cache()?.join("newest.in");
    std::fs::write(&names, "transformers\n").with_context(|| format!("cannot write {}", names.display()))?;
    resolved(python, "newest", &names)
}

/// An overlay of packages that are resolved now. Those that the environment has in the same version are left out.
fn resolved(python: &Path, name: &str, names: &Path) -> Result<PathBuf> {
    let there = workspace::cache()?.join("there.lock");
    let freeze = pip(python).args(["freeze", "--all"]).output().context("cannot start pip")?;
    anyhow::ensure!(freeze.status.success(), "pip freeze: {}", freeze.status);
    std::fs::write(&there, freeze.stdout).with_context(|| format!("cannot write {}", there.display()))?;
    let out = workspace::cache()?.join(format!("{name}.lock"));
    let mut resolve = lock(python, names, &out);
    workspace::run(&format!("resolve the {name} transformers"), resolve.arg("--beside").arg(&there))?;
    overlay(python, name, &out)
}

fn overlay(python: &Path, name: &str, lock: &Path) -> Result<PathBuf> {
    let folder = made_from(name, vec![&lock.to_path_buf()])?;
    let done = folder.join("complete");
    if !done.exists() {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let text =
            std::fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
        if text.lines().all(|line| line.starts_with('#')) {
            eprintln!("== the environment has the {name} transformers itself");
        } else {
            let mut install = pip(python);
            install.args(["install", "--no-deps", "--upgrade", "--require-hashes"]);
            install.arg("--target").arg(&folder).arg("--requirement").arg(lock);
            workspace::run(&format!("pip install the {name} transformers"), &mut install)?;
        }
        std::fs::write(&done, b"").with_context(|| format!("cannot write {}", done.display()))?;
    }
    Ok(folder)
}

/// Where the package lists lie.
pub fn locks() -> PathBuf {
    workspace::root().join("crates/dev/python/locks")
}

/// Resolves one list of names into a lock.
pub fn lock(python: &Path, names: impl AsRef<Path>, out: impl AsRef<Path>) -> Command {
    let mut command = Command::new(python);
    command.arg(workspace::root().join("crates/dev/python/lock.py"));
    command.arg(locks().join(names)).arg(locks().join(out));
    command
}

/// `NAME-DIGITS` in the cache: the digits are a 64-bit FNV-1a hash of the files' bytes.
fn made_from(name: &str, files: Vec<&PathBuf>) -> Result<PathBuf> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    Ok(workspace::cache()?.join(format!("{name}-{hash:016x}")))
}

/// System, machine and interpreter, as locks name them.
pub fn platform() -> Result<String> {
    let script = "import platform, sys; print(f'{platform.system()} {platform.machine()}, \
                  {platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}')";
    let output = Command::new("python3").args(["-c", script]).output().context("cannot start python3")?;
    anyhow::ensure!(output.status.success(), "python3: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn pip(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "--disable-pip-version-check", "--quiet"]);
    command
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_name_one_version_and_one_hash_a_line_and_no_address() {
        for name in ["tests.lock", "tests-compiled.lock", "oldest.lock", "models.lock"] {
            let text = std::fs::read_to_string(locks().join(name)).unwrap();
            let (about, packages) = text.split_once('\n').unwrap();
            assert!(about.starts_with("# Made from") && about.contains(PLATFORM), "{name}: {about}");
            assert!(!packages.is_empty(), "{name} is empty");
            for line in packages.lines() {
                let (package, hash) = line.split_once(" --hash=sha256:").expect(line);
                assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{name}: {line}");
                let (package, version) = package.split_once("==").expect(line);
                assert!(!package.is_empty() && !version.contains('/'), "{name}: {line}");
            }
        }
    }

    #[test]
    fn every_package_that_is_asked_for_is_locked() {
        for (names, locks_of) in
            [("tests.in", vec!["tests.lock", "tests-compiled.lock"]), ("oldest.in", vec!["oldest.lock"])]
        {
            let read = |file: &str| std::fs::read_to_string(locks().join(file)).unwrap();
            let locked: String = locks_of.into_iter().map(read).collect();
            for line in read(names).lines().filter(|l| !l.starts_with('#')) {
                let wanted = if line.contains("==") { format!("{line} ") } else { format!("{line}==") };
                assert!(
                    locked.lines().any(|l| l.starts_with(&wanted)),
                    "{names}: {line} is not locked: cargo dev lock"
                );
            }
        }
    }
}
