//! The smallest reproducer: one operation of one step, with all that it takes to run it elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail};
use firstdiff_compare::{CheckOptions, Evidence, check_with_evidence};
use firstdiff_model::{Model, OpKind};
use firstdiff_reference::{Arithmetic, Executor, Recorded as _, Unedited, Weights};
use firstdiff_tensor::Tensor;
use firstdiff_trace::{Trace, tap};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::cmd::check::LANES;
use crate::exit::Exit;
use crate::out;
use crate::progress::Progress;

/// A step and a tap in it: `0:layers.3.q_rope`.
#[derive(Clone, Debug)]
pub struct Only {
    step: usize,
    tap: String,
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Only, String> {
        let example = "it is a step's number, a colon and a tap, such as 0:layers.3.q_rope";
        let (step, tap) = text.split_once(':').ok_or(example)?;
        let step = step.parse().map_err(|_| format!("'{step}' is no step; {example}"))?;
        Ok(Only { step, tap: tap.to_string() })
    }
}

/// Writes the operation to `folder`.
pub fn run(
    trace: &Trace,
    model: &Model,
    arithmetic: Option<Arithmetic>,
    only: &Only,
    folder: &Path,
) -> Result<Exit> {
    let op = place(trace, model, only)?;
    vacant(folder)?;
    let progress = Progress::new("checking");
    let report = |done, total| progress.report(done, total);
    let options =
        CheckOptions { arithmetic, lanes: LANES, progress: Some(&report), ..CheckOptions::default() };
    let (_, evidence) = check_with_evidence(trace, model, &options)?;
    drop(progress);
    let what = gather(&evidence, op, only.step)?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (name, tensors) in &what.files {
        let path = folder.join(name);
        write(&path, tensors).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let path = folder.join("README.md");
    std::fs::write(&path, &what.page).with_context(|| format!("cannot write {}", path.display()))?;
    out::text(&format!("wrote {} of step {} to {}\n", only.tap, only.step, folder.display()))?;
    Ok(Exit::Agrees)
}

/// The operation, or what there is instead.
fn place(trace: &Trace, model: &Model, only: &Only) -> Result<usize> {
    let Some(step) = trace.steps.get(only.step) else {
        bail!("the trace has no step {}; it has steps 0..{}", only.step, trace.steps.len().saturating_sub(1));
    };
    let recorded: Vec<&str> = step.taps().keys().map(String::as_str).collect();
    let Some(op) = model.program.find(&only.tap) else {
        let kind = tap::split(&only.tap).1;
        let like: Vec<&str> = recorded.iter().copied().filter(|t| tap::split(t).1 == kind).collect();
        let kinds: BTreeSet<String> = recorded.iter().map(|t| tap::pattern(t)).collect();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(" ");
        let there = if like.is_empty() { kinds } else { like.join(" ") };
        bail!("the model has no tap '{}'; step {} has {there}", only.tap, only.step);
    };
    if !recorded.contains(&only.tap.as_str()) {
        let layer = tap::split(&only.tap).0;
        let near: Vec<&str> = recorded.iter().copied().filter(|t| tap::split(t).0 == layer).collect();
        let there = if near.is_empty() { recorded.join(" ") } else { near.join(" ") };
        bail!("'{}' is not recorded in step {}; recorded beside it: {there}", only.tap, only.step);
    }
    Ok(op.0)
}

/// Nothing is overwritten.
fn vacant(folder: &Path) -> Result<()> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty; name a folder that does not exist yet", folder.display()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(anyhow!("{}: {e}; --export takes a folder", folder.display())),
    }
}

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor<f64>>;

/// What is written.
struct Exported {
    files: Vec<(&'static str, Tensors)>,
    page: String,
}

fn gather(evidence: &Evidence, op: usize, step: usize) -> Result<Exported> {
    let program = &evidence.model.program;
    let model = evidence.model;
    let weights = Weights::held(&model.checkpoint, &evidence.arithmetic, &model.program, 0);
    let executor = Executor {
        program,
        weights: &weights,
        arithmetic: Some(&evidence.arithmetic),
        lanes: LANES,
        progress: None,
    };
    let target = BTreeSet::from([(op, step)]);
    let needed = executor.needed::<f64>(&target, evidence);
    let predicted = executor.segment(&evidence.steps, &target, evidence, &Unedited, false)?;
    let Some(predicted) = predicted.into_iter().next() else { bail!("the operation cannot be executed") };
    // Values of other steps say so in their names.
    let name = |op: usize, at: usize| {
        let tap = &program.ops[op].tap;
        if at == step { tap.clone() } else { format!("{at}:{tap}") }
    };
    let (mut inputs, mut parameters) = (Tensors::new(), Tensors::new());
    for &(index, at) in &needed {
        if (index, at) != (op, step)
            && let Some(value) = evidence.value(index, at)?
        {
            inputs.insert(name(index, at), value);
            continue;
        }
        for input in &program.ops[index].inputs {
            if let Some(value) = evidence.value(input.0, at)? {
                inputs.insert(name(input.0, at), value);
            }
        }
        for (weight, shape) in program.ops[index].kind.weights() {
            let values = weights.whole(weight)?.iter().map(|x| f64::from(*x)).collect();
            parameters.insert(weight.to_string(), Tensor::new(shape, values)?);
        }
    }
    let row = |values: Vec<f64>| Tensor::new([values.len()], values);
    let rows = &evidence.steps[step];
    let steps: BTreeSet<usize> = needed.iter().map(|p| p.1).chain([step]).collect();
    for at in steps {
        let name = if at == step { "positions".to_string() } else { format!("{at}:positions") };
        inputs.insert(name, row(evidence.steps[at].positions.iter().map(|p| f64::from(*p)).collect())?);
    }
    inputs.insert("token_ids".into(), row(rows.token_ids.iter().map(|t| *t as f64).collect())?);
    let tap = program.ops[op].tap.clone();
    let engine = evidence.value(op, step)?.context("the operation is not recorded")?;
    let mut reference = Tensors::from([(tap.clone(), predicted.exact.clone())]);
    if let Some(noise) = &predicted.noise {
        let deviation = noise.variance.iter().map(|v| v.sqrt()).collect();
        reference
            .insert(format!("{tap}.rounding"), Tensor::new(predicted.exact.shape().to_vec(), deviation)?);
    }
    let verdict = evidence.measure(predicted)?.map(|m| {
        let is = if m.is_wrong() { "wrong" } else { "what rounding explains" };
        format!(
            "The engine's value is {is}: the error is {} times what rounding makes it.",
            firstdiff_report::short(m.ratio)
        )
    });
    let operations: Vec<(usize, usize)> = needed
        .iter()
        .copied()
        .filter(|&(index, at)| (index, at) == (op, step) || !evidence.has(index, at))
        .collect();
    let page = page(evidence, &tap, step, &operations, &inputs, &parameters, verdict.as_deref())?;
    Ok(Exported {
        files: vec![
            ("inputs.safetensors", inputs),
            ("weights.safetensors", parameters),
            ("engine.safetensors", Tensors::from([(tap, engine)])),
            ("reference.safetensors", reference),
        ],
        page,
    })
}

fn page(
    evidence: &Evidence,
    tap: &str,
    step: usize,
    operations: &[(usize, usize)],
    inputs: &Tensors,
    weights: &Tensors,
    verdict: Option<&str>,
) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "# {tap}, step {step}\n")?;
    writeln!(out, "{}\n", verdict.unwrap_or("The engine's value could not be measured."))?;
    writeln!(
        out,
        "Engine's arithmetic: {}. Numbers are float32, or float64 where that holds more.\n",
        evidence.arithmetic.name
    )?;
    writeln!(out, "| file | holds |\n|---|---|")?;
    let list = |t: &Tensors| {
        let name = |(name, t): (&String, &Tensor<f64>)| format!("`{name}` {:?}", t.shape());
        t.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    writeln!(out, "| inputs.safetensors | what the engine recorded before: {} |", list(inputs))?;
    writeln!(out, "| weights.safetensors | as the engine holds them: {} |", list(weights))?;
    writeln!(out, "| engine.safetensors | `{tap}` as the engine has it |")?;
    writeln!(
        out,
        "| reference.safetensors | `{tap}` in float64 from these inputs; `{tap}.rounding`: the deviation that rounding explains, \
         element by element |\n"
    )?;
    writeln!(out, "Operations from the inputs to `{tap}`, in order:\n")?;
    for &(index, at) in operations {
        let op = &evidence.model.program.ops[index];
        let from: Vec<&str> =
            op.inputs.iter().map(|i| evidence.model.program.ops[i.0].tap.as_str()).collect();
        let read = if from.is_empty() { String::new() } else { format!(" of {}", from.join(", ")) };
        let when = if at == step { String::new() } else { format!(" (step {at})") };
        writeln!(out, "* `{}`{when} = {}{read}: {}", op.tap, op.kind.name(), settings(&op.kind))?;
    }
    Ok(out)
}

/// An operation's numbers: `heads: 4, dim: 16`.
fn settings(kind: &OpKind) -> String {
    let text = format!("{kind:?}");
    let inner = text
        .split_once("{ ")
        .and_then(|(_, rest)| rest.rsplit_once(" })"))
        .map(|(inner, _)| inner.to_string());
    inner.unwrap_or(text)
}

fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        // What engines record fits float32; what the reference computes does not.
        let short = tensor.data().iter().all(|x| x.is_nan() || f64::from(*x as f32) == *x);
        let (dtype, bytes): (Dtype, Vec<u8>) = match short {
            true => (Dtype::F32, tensor.data().iter().flat_map(|x| (*x as f32).to_le_bytes()).collect()),
            false => (Dtype::F64, tensor.data().iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        stored.push((name, dtype, tensor.shape().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(stored.len());
    for (name, dtype, shape, bytes) in &stored {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?));
    }
    serialize_to_file(views, None, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_step_and_a_tap() {
        let only: Only = "12:layers.3.q_rope".parse().unwrap();
        assert_eq!((only.step, only.tap.as_str()), (12, "layers.3.q_rope"));
        for wrong in ["layers.3.q_rope", "x:embed", "-1:embed", ""] {
            let error = wrong.parse::<Only>().unwrap_err();
            assert!(error.contains("0:layers.3.q_rope"), "{wrong}: {error}");
        }
    }
}
