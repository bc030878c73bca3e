//! `cargo dev engines`: engines that nobody here wrote, on tiny random models, checked without a declaration.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::workspace;

/// Run real engines on tiny random models, record them, and check the traces with nothing declared.
#[derive(Args)]
pub struct Engines {
    /// Which ones; all unless named
    #[arg(value_enum)]
    engines: Vec<Engine>,
    /// Runs whose name contains this
    #[arg(long = "match")]
    matching: Option<String>,
    /// Keep models and traces in this folder
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
enum Engine {
    Mlx,
    Candle,
    Onnxruntime,
    Openvino,
    Vllm,
}

impl Engine {
    const ALL: [Engine; 5] =
        [Engine::Mlx, Engine::Candle, Engine::Onnxruntime, Engine::Openvino, Engine::Vllm];

    /// `record_<name>.py` runs and records it.
    fn name(self) -> &'static str {
        match self {
            Engine::Mlx => "mlx",
            Engine::Candle => "candle",
            Engine::Onnxruntime => "onnxruntime",
            Engine::Openvino => "openvino",
            Engine::Vllm => "vllm",
        }
    }

    /// The lock of its Python environment.
    fn lock(self) -> &'static str {
        match self {
            Engine::Mlx => "mlx.lock",
            Engine::Candle => "candle.lock",
            Engine::Onnxruntime | Engine::Openvino => "onnx.lock",
            Engine::Vllm => "vllm.lock",
        }
    }
}

pub fn run(c: &Engines) -> Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "firstdiff"];
    workspace::run("cargo build", Command::new("cargo").args(build))?;
    let engines: BTreeSet<Engine> =
        if c.engines.is_empty() { Engine::ALL.into() } else { c.engines.iter().copied().collect() };
    let scratch = tempfile::tempdir()?;
    let out = c.keep.clone().unwrap_or_else(|| scratch.path().to_path_buf());
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize()?;
    let (mut checked, mut wrong) = (0, Vec::new());
    for engine in engines {
        for name in record(engine, &out, c.matching.as_deref())? {
            checked += 1;
            if !check(&out.join(&name), &name)? {
                wrong.push(name);
            }
        }
    }
    ensure!(checked > 0, "no run is called that");
    ensure!(
        wrong.is_empty(),
        "{} of {checked} runs are not judged as expected: {}",
        wrong.len(),
        wrong.join(", ")
    );
    println!("all {checked} runs are judged as expected");
    Ok(())
}

/// Runs the engine; returns the names of its runs, each a folder in `out`.
fn record(engine: Engine, out: &Path, matching: Option<&str>) -> Result<Vec<String>> {
    let python = environment(engine)?;
    let scripts = workspace::root().join("crates/dev/python/engines");
    let recorders = workspace::root().join("recorders/python/src");
    let mut script = Command::new(python);
    script.env("PYTHONPATH", std::env::join_paths([&recorders, &scripts])?);
    script.env("PYTHONWARNINGS", "ignore");
    script.arg(scripts.join(format!("record_{}.py", engine.name()))).arg(out);
    if engine == Engine::Candle {
        script.arg("--program").arg(candle()?);
    }
    if let Some(matching) = matching {
        script.args(["--match", matching]);
    }
    // standard output names the runs, one a line
    eprintln!("== {}", engine.name());
    let output = script.current_dir(workspace::root()).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{}: {}", engine.name(), output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.strip_prefix("run ")).map(str::to_string).collect())
}

/// The interpreter of the engine's environment, made once for each content of its lock.
fn environment(engine: Engine) -> Result<PathBuf> {
    let lock = workspace::root().join("crates/dev/python/engines/locks").join(engine.lock());
    let text = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let stem = engine.lock().trim_end_matches(".lock");
    let folder = workspace::cache()?.join(format!("engine-{stem}-{:016x}", hasher.finish()));
    let python = folder.join("bin").join("python");
    let done = folder.join("complete");
    if !done.exists() {
        eprintln!("Making a Python environment in {}.", folder.display());
        workspace::run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut pip = Command::new(&python);
        // the lock is all that is installed: some wheels ask for builds that the package index does not have
        pip.args(["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]);
        workspace::run("pip install", pip.args(["--require-hashes", "--requirement"]).arg(&lock))?;
        fs::write(&done, b"")?;
    }
    Ok(python)
}

/// The program that runs candle; a workspace of its own, so that candle is in no other lock file.
fn candle() -> Result<PathBuf> {
    let manifest = workspace::root().join("crates/dev/engines/candle/Cargo.toml");
    let target = workspace::cache()?.join("candle");
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--release", "--locked", "--manifest-path"]).arg(manifest);
    workspace::run("cargo build candle", build.arg("--target-dir").arg(&target))?;
    Ok(target.join("release/firstdiff-dev-candle"))
}

/// Checks a run as it is and, where the engine's arithmetic is known, declared; prints a line for each. Says whether the
/// verdicts are those expected: `agrees`, but for engines that are known to be wrong (`diverges`, and at which tap first, where
/// the fault was planted: `diverges layers.0.q_rope`).
fn check(run: &Path, name: &str) -> Result<bool> {
    let model = run.join("model");
    let expected = fs::read_to_string(run.join("expected")).unwrap_or_else(|_| "agrees".to_string());
    let is_expected = |result: &Value| {
        let said = [result["verdict"].as_str(), result["findings"][0]["tap"].as_str()];
        expected.split_whitespace().zip(said).all(|(expected, said)| said == Some(expected))
    };
    let mut right = is_expected(&judge(&run.join("trace"), &model, name)?);
    let declared = run.join("declared.json");
    if declared.exists() {
        let copy = run.join("declared");
        declare(&run.join("trace"), &copy, &fs::read(declared)?)?;
        right &= is_expected(&judge(&copy, &model, &format!("{name}, declared"))?);
    }
    Ok(right)
}

/// Prints a line, and returns all that `check` says.
fn judge(trace: &Path, model: &Path, name: &str) -> Result<Value> {
    let mut check = Command::new(workspace::target().join("release/firstdiff"));
    check.arg("check").arg(trace).arg("--model").arg(model).args(["--format", "json"]);
    let output = check.output()?;
    let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let said = line(&result).unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned());
    println!("{name:<34} {said}");
    Ok(result)
}

/// What of a result fits in one line: the verdict, the closest value, the arithmetic that was taken.
fn line(result: &Value) -> Option<String> {
    let mut line = result["verdict"].as_str()?.to_string();
    if let Some(first) = result["findings"].get(0).and_then(|finding| finding["tap"].as_str()) {
        line += &format!(" at {first}");
    }
    if let (Some(tap), Some(part)) = (result["closest"][0].as_str(), result["closest"][1].as_f64()) {
        line += &format!(", closest {tap} at {part:.3}");
    }
    line += &format!(", {}", result["arithmetic"]["profile"].as_str().unwrap_or("no arithmetic"));
    Some(line)
}

/// The same trace with `arithmetic`.
fn declare(trace: &Path, copy: &Path, arithmetic: &[u8]) -> Result<()> {
    fs::create_dir(copy)?;
    for entry in fs::read_dir(trace)? {
        let entry = entry?;
        fs::hard_link(entry.path(), copy.join(entry.file_name()))?;
    }
    let about = copy.join("trace.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&about)?)?;
    value["arithmetic"] = serde_json::from_slice(arithmetic)?;
    fs::remove_file(&about)?;
    Ok(fs::write(about, serde_json::to_vec_pretty(&value)?)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_engine_has_its_script_and_its_lock() {
        let folder = workspace::root().join("crates/dev/python/engines");
        for engine in Engine::ALL {
            assert!(folder.join(format!("record_{}.py", engine.name())).is_file(), "{engine:?}");
            let lock = fs::read_to_string(folder.join("locks").join(engine.lock())).unwrap();
            let packages: Vec<&str> = lock.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
            assert!(!packages.is_empty(), "{engine:?}");
            for package in packages {
                assert!(
                    package.contains("==") && package.contains(" --hash=sha256:"),
                    "{engine:?}: {package}"
                );
                assert!(!package.contains("://"), "{engine:?}: {package}");
            }
        }
    }

    #[test]
    fn a_line_names_verdict_place_and_arithmetic() {
        let result = json!({"verdict": "diverges", "findings": [{"tap": "layers.0.q_proj"}],
            "closest": ["embed", 0.25], "arithmetic": {"profile": "bf16"}});
        assert_eq!(line(&result).unwrap(), "diverges at layers.0.q_proj, closest embed at 0.250, bf16");
        let result =
            json!({"verdict": "agrees", "findings": [], "closest": null, "arithmetic": {"profile": "f32"}});
        assert_eq!(line(&result).unwrap(), "agrees, f32");
        assert!(line(&Value::Null).is_none());
    }
}
