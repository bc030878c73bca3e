//! `firstdiff check` as a program: what goes to stdout and what to stderr, budgets, interrupts.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

fn demo(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(part)
}

fn command(trace: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstdiff"));
    command.arg("check").arg(trace).arg("--model").arg(demo("model")).args(more);
    command
}

fn check(more: &[&str]) -> Output {
    command(&demo("trace"), more).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_first_verdict_goes_to_stderr_and_the_whole_result_once_to_stdout() {
    let first = "diverges: rope at layers.0.q_rope, step 0; looking for causes ...\n";
    let output = check(&[]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), first));
    let said = text(&output.stdout);
    assert_eq!(said.matches("the first wrong operation is").count(), 1, "{said}");
    assert!(said.contains("\n  cause       rope-theta-wrong: ") && !said.contains("causes "), "{said}");
    let whole = check(&["--format", "json"]);
    assert_eq!(text(&whole.stderr), first);
    let whole = json(&whole);
    assert_eq!((&whole["complete"], &whole["causes_complete"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(whole["findings"][0]["cause"]["id"], "rope-theta-wrong");
}

#[test]
fn without_causes_there_is_the_verdict_and_the_place() {
    let output = check(&["--no-causes"]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), ""));
    let said = text(&output.stdout);
    assert!(said.starts_with("diverges: the first wrong operation is rope at layers.0.q_rope\n"), "{said}");
    assert!(said.contains("\ncauses        not looked for\n") && !said.contains("nothing tried"), "{said}");
    let output = json(&check(&["--no-causes", "--format", "json"]));
    assert_eq!(output["causes_complete"], false);
    assert_eq!((&output["findings"][0]["cause"], &output["candidates"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_budget_that_is_spent_says_how_far_it_went() {
    let output = check(&["--budget", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("\ncauses        searched 0 of "), "{said}");
    assert!(said.contains("--budget 60 searches further"), "{said}");
    // Between nothing and everything.
    let part = json(&check(&["--budget", "0.02", "--format", "json"]));
    let (tried, of) = (&part["candidates"]["tried"], &part["candidates"]["of"]);
    assert_eq!(part["causes_complete"], false);
    assert!(tried.as_u64().unwrap() > 0 && tried.as_u64() < of.as_u64(), "{tried} of {of}");
    for wrong in ["-1", "x", "inf", "nan"] {
        assert_eq!(check(&["--budget", wrong]).status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn what_a_budget_gives_does_not_depend_on_threads() {
    for budget in ["0.02", "10"] {
        let one = check(&["--budget", budget, "--format", "json", "--threads", "1"]);
        let many = check(&["--budget", budget, "--format", "json", "--threads", "5"]);
        assert_eq!(text(&one.stdout), text(&many.stdout), "budget {budget}");
    }
}

/// The demo's trace with its decoded tokens at positions from `first` on.
fn decoded_from(first: i64, folder: &Path) {
    for entry in std::fs::read_dir(demo("trace")).unwrap() {
        let entry = entry.unwrap();
        let (from, bytes) = (entry.file_name(), std::fs::read(entry.path()).unwrap());
        let name = from.to_str().unwrap();
        let step: Option<i64> = name.strip_prefix("step-").and_then(|n| n[..6].parse().ok());
        let bytes = match step {
            Some(step @ 1..) => moved(&bytes, first + step - 1),
            _ => bytes,
        };
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A step at other positions, without caches, scores and probabilities.
fn moved(bytes: &[u8], first: i64) -> Vec<u8> {
    let step = SafeTensors::deserialize(bytes).unwrap();
    let rows = step.tensor("token_ids").unwrap().shape()[0];
    let positions: Vec<u8> = (0..rows as i64).flat_map(|i| (first + i).to_le_bytes()).collect();
    let mut tensors: Vec<(String, TensorView)> =
        step.tensors().into_iter().filter(|(name, _)| name != "positions").collect();
    tensors.push(("positions".into(), TensorView::new(Dtype::I64, vec![rows], &positions).unwrap()));
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn the_time_for_a_cause_does_not_grow_with_positions() {
    let folder = tempfile::tempdir().unwrap();
    decoded_from(100_000_000, folder.path());
    let output = command(folder.path(), &["--format", "json"]).output().unwrap();
    let result = json(&output);
    // Work is bounded by the budget whatever the positions; what was tried within it says so.
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(result["causes_complete"], true, "{}", result["candidates"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_prints_what_is_known_as_incomplete_with_the_verdicts_exit_code() {
    let mut running = command(&demo("trace"), &["--format", "json", "--threads", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first verdict is said before causes are looked for, which takes far longer than a signal.
    let mut first = [0; 9];
    running.stderr.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"diverges:");
    let killed = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let result = json(&output);
    assert_eq!((&result["complete"], &result["causes_complete"]), (&Value::Bool(false), &Value::Bool(false)));
    assert_eq!(result["findings"][0]["tap"], "layers.0.q_rope");
}
