//! What can stop an execution.

/// An execution that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that an execution should start from is not recorded.
    #[error("step {step}: '{tap}' is not recorded, and it is where the execution starts")]
    NotRecorded {
        /// The step.
        step: usize,
        /// The tap.
        tap: String,
    },
    /// A weight could not be read.
    #[error(transparent)]
    Checkpoint(#[from] firstdiff_checkpoint::Error),
    /// A trace could not be read.
    #[error(transparent)]
    Trace(#[from] firstdiff_trace::Error),
    /// A weight that the checkpoint lacks.
    #[error("tensor '{name}' is not in the checkpoint")]
    MissingWeight {
        /// The tensor.
        name: String,
    },
    /// A token id outside the vocabulary.
    #[error(
        "step {step}, row {row}: token id {token} is outside the vocabulary of {vocab}; the tokens are of another model"
    )]
    Token {
        /// The step.
        step: usize,
        /// The row in it.
        row: usize,
        /// The id.
        token: i64,
        /// Ids the model has.
        vocab: usize,
    },
    /// A value handed in does not fit the operations that read it.
    #[error("step {step}: {tap} has shape {found:?}, which {reader} cannot read (it needs {expected})")]
    Shape {
        /// The step.
        step: usize,
        /// The value's tap.
        tap: String,
        /// Its shape.
        found: Vec<usize>,
        /// The operation that reads it.
        reader: String,
        /// What it needs.
        expected: String,
    },
}
