//! Everything that can be wrong with a model file.

use std::path::PathBuf;

/// A model that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A GGUF file is malformed, or holds what this reader does not support.
    #[error("{}: {fault}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: GgufFault,
    },
    /// A folder is no complete, well-formed model.
    #[error("{}: {fault}", path.display())]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        fault: FolderFault,
    },
    /// The tokenizer or the chat template cannot be used.
    #[error("{}: {fault}", path.display())]
    Tokenizer {
        /// The file that holds the tokenizer.
        path: PathBuf,
        /// What is wrong with it.
        fault: TokenizerFault,
    },
    /// The configuration names no model family.
    #[error("{}: no model_type, so the model's family is unknown; take config.json from the model's original source", path.display())]
    NoModelType {
        /// The file that should name it.
        path: PathBuf,
    },
}
/// What can be wrong with a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {}
/// What can be wrong with a model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderFault {}
/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerFault {}
