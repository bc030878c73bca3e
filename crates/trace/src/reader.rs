//! Opening a trace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Error, Manifest, Step};

/// A trace on disk, validated.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    /// `trace.json`.
    pub manifest: Manifest,
    /// The forward calls, in order.
    pub steps: Vec<Step>,
}

impl Trace {
    /// Opens and validates the trace in the folder `path`. Files that are not step files, such as
    /// the temporary one a killed engine leaves, are ignored.
    ///
    /// # Errors
    /// When the folder is no trace, a step is damaged, or one is missing between others.
    pub fn open(path: &Path) -> Result<Trace, Error> {
        let not_a_trace =
            |reason: &str| Error::NotATrace { path: path.to_path_buf(), reason: reason.to_string() };
        if !path.is_dir() {
            let reason =
                if path.exists() { "it is a file, a trace is a folder" } else { "there is no such folder" };
            return Err(not_a_trace(reason));
        }
        let manifest_path = path.join("trace.json");
        if !manifest_path.is_file() {
            // The parts of a run, one folder a rank: the first stands for it, and says that it is a part.
            let ranks =
                (0..MAX_RANKS).take_while(|rank| is_folder(&path.join(format!("rank-{rank}")))).count();
            if ranks == 0 {
                return Err(not_a_trace("it has no trace.json"));
            }
            let mut part = Trace::open(&path.join("rank-0"))?;
            part.manifest.other.entry("rank").or_insert_with(|| serde_json::json!({ "tp": [0, ranks] }));
            return Ok(part);
        }
        let manifest = Manifest::read(&manifest_path)?;

        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(path).map_err(Error::io(path, "list the folder"))? {
            let entry = entry.map_err(Error::io(path, "list the folder"))?;
            if let Some(index) = entry.file_name().to_str().and_then(step_index) {
                files.insert(index, entry.path());
            }
        }
        let family = manifest.model.as_ref().and_then(|model| model.family.as_deref());
        let sandwich = family.is_some_and(|family| family.starts_with("gemma"));
        let mut next = BTreeMap::new();
        let mut steps = Vec::new();
        for (expected, (index, file)) in files.iter().enumerate() {
            if *index != expected {
                return Err(Error::Gap { path: path.to_path_buf(), missing: expected, present: *index });
            }
            steps.push(Step::open(file, &mut next, sandwich)?);
        }
        Ok(Trace { path: path.to_path_buf(), manifest, steps })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a folder is there, and no link to one.
fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// Ranks of a run that are looked for at most.
const MAX_RANKS: usize = 1024;

/// The number in `step-000012.safetensors`.
fn step_index(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
    (digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}
