//! The pre-flight: a model looked over before anything runs.

use firstdiff_model::{Model, Usage, inspect as inspect_tensor};
use rayon::prelude::*;
use serde::Serialize;

use crate::Error;

/// A configuration value that changes the numerics.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The value used.
    pub value: String,
    /// Where it was read, or why it has this default.
    pub origin: String,
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name, in Hugging Face spelling.
    pub name: String,
    /// Its name in the file.
    pub source: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its storage format.
    pub storage: &'static str,
    /// `used`, `folded`, `ignored` or `unused`.
    pub usage: &'static str,
    /// Taps of the operations that read it.
    pub used_by: Vec<String>,
    /// What is suspicious about its values.
    pub flags: Vec<String>,
}

/// A model, looked over.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Nothing suspicious, nothing unused.
    pub sound: bool,
    /// The family.
    pub family: &'static str,
    /// Members of the family.
    pub members: &'static str,
    /// Identity of the weights.
    pub fingerprint: String,
    /// Operations of the program.
    pub operations: usize,
    /// Parameters: elements of all used tensors.
    pub parameters: usize,
    /// Configuration values that change the numerics.
    pub settings: Vec<Setting>,
    /// Ids that end a generation, and who declares them.
    pub stop_ids: Vec<(u32, Vec<String>)>,
    /// Every tensor.
    pub tensors: Vec<TensorReport>,
}

/// Looks a model over: every tensor's use and values, every setting's origin.
///
/// # Errors
/// When a tensor cannot be read.
pub fn inspect(model: &Model, progress: Option<&(dyn Fn(usize, usize) + Sync)>) -> Result<Inspection, Error> {
    inspect_some(model, |_| true, progress)
}

/// Looks the tensors over whose names are `wanted`.
pub(crate) fn inspect_some(
    model: &Model,
    wanted: impl Fn(&str) -> bool,
    progress: Option<&(dyn Fn(usize, usize) + Sync)>,
) -> Result<Inspection, Error> {
    let mut uses = model.tensor_uses();
    uses.retain(|u| wanted(&u.tensor.name));
    let (done, total) = (std::sync::atomic::AtomicUsize::new(0), uses.len());
    let tensors: Vec<TensorReport> = uses
        .par_iter()
        .map(|u| {
            let flags = inspect_tensor(model, u.tensor)?.iter().map(ToString::to_string).collect();
            if let Some(progress) = progress {
                progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, total);
            }
            let (usage, used_by) = match &u.usage {
                Usage::Used(by) => ("used", by.clone()),
                Usage::Folded => ("folded", vec![]),
                Usage::Ignored(_) => ("ignored", vec![]),
                Usage::Unused => ("unused", vec![]),
            };
            Ok(TensorReport {
                name: u.tensor.name.clone(),
                source: u.tensor.source_name.clone(),
                shape: u.tensor.shape.clone(),
                storage: u.tensor.storage.name(),
                usage,
                used_by,
                flags,
            })
        })
        .collect::<Result<_, firstdiff_model::Error>>()?;
    let setting = |s: &firstdiff_model::Setting| Setting {
        key: s.key.clone(),
        value: s.value.clone(),
        origin: s.origin.clone(),
    };
    Ok(Inspection {
        sound: tensors.iter().all(|t| t.flags.is_empty() && t.usage != "unused"),
        family: model.family.name,
        members: model.family.members,
        fingerprint: model.checkpoint.fingerprint(),
        operations: model.program.ops.len(),
        parameters: uses.iter().filter(|u| matches!(u.usage, Usage::Used(_))).map(|u| u.tensor.len()).sum(),
        settings: model.settings.iter().map(setting).collect(),
        stop_ids: model.checkpoint.generation().stop_ids.into_iter().collect(),
        tensors,
    })
}

impl Inspection {
    /// What is suspicious, a line each.
    pub fn suspicions(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for t in &self.tensors {
            lines.extend(t.flags.iter().map(|flag| format!("{}: {flag}", t.name)));
            if t.usage == "unused" {
                lines.push(format!("{}: unused: no operation reads it", t.name));
            }
        }
        lines
    }
}
