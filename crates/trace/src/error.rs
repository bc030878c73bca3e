//! What can be wrong with a trace.

use std::path::PathBuf;

/// A trace that cannot be read or written. Every message names the file, what is wrong in it, and
/// what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The folder is not a trace.
    #[error(
        "{path}: not a firstdiff trace: {reason}; record one with the firstdiff Python package, or see docs/TRACE.md"
    )]
    NotATrace {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// `trace.json` is no valid manifest.
    #[error("{path}: {reason}; see docs/TRACE.md for the keys and their types")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer, incompatible firstdiff.
    #[error(
        "{path}: trace format version {found} is newer than version {supported}, the newest this firstdiff reads; \
         update firstdiff, or record again with an older recorder"
    )]
    TooNew {
        /// The manifest.
        path: PathBuf,
        /// The version in the file.
        found: u64,
        /// The newest version this crate reads.
        supported: u64,
    },
    /// A step file is not valid safetensors (truncated, corrupted).
    #[error("{path}: not a valid safetensors file: {reason}; the file is damaged, record the trace again")]
    Damaged {
        /// The step file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A tensor in a step file does not follow the format.
    #[error("{path}: tensor '{tensor}' {reason}")]
    Tensor {
        /// The step file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A step is missing between others.
    #[error(
        "{path}: step {missing} is missing although step {present} exists; copy the whole folder, or record again"
    )]
    Gap {
        /// The folder.
        path: PathBuf,
        /// The first absent step.
        missing: usize,
        /// A later step that is there.
        present: usize,
    },
    /// The output folder holds something else already.
    #[error("{path}: exists and is not empty; choose another folder, or remove it first")]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, action, source }
    }
}
