use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use firstdiff_compare::CheckOptions;
use firstdiff_trace::Trace;

use crate::args::OutputFormat;
use crate::cmd::check;
use crate::exit::Exit;
use crate::load;
use crate::out;

/// Check a broken engine's trace of a tiny bundled model: no download, no GPU.
///
/// The model is a random Qwen3; the trace was recorded from a run of it in transformers with one
/// planted bug. Prints what `check` prints.
#[derive(Debug, ClapArgs)]
pub struct Demo {}

/// The bundled files, made by `cargo dev demo`.
const FILES: &[(&str, &[u8])] = &[
    ("model/config.json", include_bytes!("../../demo/model/config.json")),
    ("model/model.safetensors", include_bytes!("../../demo/model/model.safetensors")),
    ("trace/trace.json", include_bytes!("../../demo/trace/trace.json")),
    ("trace/step-000000.safetensors", include_bytes!("../../demo/trace/step-000000.safetensors")),
    ("trace/step-000001.safetensors", include_bytes!("../../demo/trace/step-000001.safetensors")),
    ("trace/step-000002.safetensors", include_bytes!("../../demo/trace/step-000002.safetensors")),
    ("trace/step-000003.safetensors", include_bytes!("../../demo/trace/step-000003.safetensors")),
    ("trace/step-000004.safetensors", include_bytes!("../../demo/trace/step-000004.safetensors")),
    ("trace/step-000005.safetensors", include_bytes!("../../demo/trace/step-000005.safetensors")),
    ("trace/step-000006.safetensors", include_bytes!("../../demo/trace/step-000006.safetensors")),
];

pub fn run(_c: &Demo) -> Result<Exit> {
    let folder = std::env::temp_dir().join(concat!("firstdiff-demo-", env!("CARGO_PKG_VERSION")));
    unpack(&folder).with_context(|| format!("cannot unpack the demo to {}", folder.display()))?;
    let (trace, model) = (folder.join("trace"), folder.join("model"));
    eprintln!("$ firstdiff check {} --model {}", trace.display(), model.display());
    let exit = check::verdict(
        &Trace::open(&trace)?,
        &load::model(&model)?,
        CheckOptions::default(),
        Some(check::DIAGNOSIS),
        OutputFormat::Text,
        &model,
    )?;
    let model = model.display();
    out::text(&format!(
        "\nThe engine rotated queries and keys with base 10,000; the model's config.json says 1,000,000.\n\
         Try next:\n  \
         firstdiff inspect {model}\n  \
         firstdiff trace {model} my-trace --tokens 5,6,7 --steps 4\n  \
         firstdiff check my-trace --model {model}\n"
    ))?;
    // The demo did what it was asked: a wrong engine was found out.
    Ok(if exit == Exit::Diverges { Exit::Agrees } else { Exit::Error })
}

fn unpack(folder: &Path) -> std::io::Result<()> {
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|have| have == *bytes) {
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let partial = path.with_extension("partial");
        std::fs::write(&partial, bytes)?;
        std::fs::rename(&partial, &path)?;
    }
    Ok(())
}
