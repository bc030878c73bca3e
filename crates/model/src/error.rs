//! Why a checkpoint cannot be turned into a program.

use std::path::PathBuf;

/// A configuration or checkpoint that does not describe a model firstdiff can run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file itself could not be read.
    #[error(transparent)]
    Checkpoint(#[from] firstdiff_checkpoint::Error),
    /// No family of this name.
    #[error("{file}: model_type '{model_type}' is not supported; supported are {supported}")]
    UnknownFamily {
        /// Where the type was read.
        file: PathBuf,
        /// The type.
        model_type: String,
        /// All that would do.
        supported: String,
    },
    /// A family that would be mistaken for a supported one.
    #[error("{file}: model_type '{model_type}' is not supported: {why}")]
    RefusedFamily {
        /// Where the type was read.
        file: PathBuf,
        /// The type.
        model_type: String,
        /// What sets it apart.
        why: &'static str,
    },
    /// A configuration value is absent, of the wrong type, or out of range.
    #[error("{file}: '{key}' {reason}")]
    Setting {
        /// The configuration file.
        file: PathBuf,
        /// The key, in config.json spelling.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A weight that the program needs is not in the checkpoint.
    #[error(
        "{file}: tensor '{name}' (shape {shape:?}) is missing; the file is incomplete, or its configuration is of another model"
    )]
    MissingTensor {
        /// The checkpoint.
        file: PathBuf,
        /// The tensor's name in Hugging Face spelling.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },
    /// A weight that is needed is in a file that is not here.
    #[error("{file}: {tap} needs tensor '{name}', which is in {shard}, and that is not here: download it")]
    MissingShard {
        /// The checkpoint.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        shard: String,
        /// What needs it.
        tap: String,
    },
    /// A weight has another shape than the configuration says.
    #[error(
        "{file}: tensor '{name}' has shape {found:?} where the configuration makes it {expected:?}; file and configuration are of different models"
    )]
    WrongShape {
        /// The checkpoint.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape the program needs.
        expected: Vec<usize>,
    },
}
