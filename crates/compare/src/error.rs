//! What keeps a trace from being compared.

use std::path::PathBuf;

/// A trace and a model that cannot be held against each other.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trace could not be read.
    #[error(transparent)]
    Trace(#[from] firstdiff_trace::Error),
    /// The model could not be read.
    #[error(transparent)]
    Model(#[from] firstdiff_model::Error),
    /// The model could not be executed.
    #[error(transparent)]
    Reference(#[from] firstdiff_reference::Error),
    /// A recorded value has a shape that the model's operation cannot have.
    #[error(
        "{file}: tap '{tap}' has shape {found:?} where this model has {expected:?}; \
         is the trace of this model? (tap names and axes are in docs/TRACE.md)"
    )]
    Shape {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape the program gives it.
        expected: Vec<usize>,
    },
    /// Whole numbers where values are measured.
    #[error(
        "{file}: tap '{tap}' is stored as whole numbers, but it is no choice; record it in the float type that the engine holds"
    )]
    WholeNumbers {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
    },
    /// A tap of a layer the model does not have.
    #[error(
        "{file}: tap '{tap}' belongs to a layer that the model does not have (it has {layers}); the trace is of another model"
    )]
    Layer {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Layers of the model.
        layers: usize,
    },
    /// A token that the model does not have.
    #[error(
        "{file}: 'token_ids' row {row} is {token}, outside this model's vocabulary of {vocab}; the trace is of another model, or its ids are damaged"
    )]
    Vocabulary {
        /// The step file.
        file: PathBuf,
        /// The row.
        row: usize,
        /// The id.
        token: i64,
        /// Ids the model has.
        vocab: usize,
    },
    /// The trace names another model.
    #[error(
        "{file}: the trace was recorded from {key} '{trace}', the model given is '{model}'; give the model it was recorded from"
    )]
    OtherModel {
        /// The manifest.
        file: PathBuf,
        /// What differs.
        key: &'static str,
        /// What the trace says.
        trace: String,
        /// What the model is.
        model: String,
    },
    /// The trace was recorded from other weights.
    #[error(
        "{file}: recorded with other weights: fingerprint '{trace}', the model given has '{model}'. Another revision, \
         or another quantisation; no difference between the two would be a bug. Give the model it was recorded from, \
         or record again from this one"
    )]
    OtherWeights {
        /// The manifest.
        file: PathBuf,
        /// The fingerprint in it.
        trace: String,
        /// The model's.
        model: String,
    },
    /// An arithmetic that is not known.
    #[error(
        "{file}: arithmetic '{key}' is '{value}'; known are {known}. Correct trace.json, or give --arithmetic"
    )]
    Arithmetic {
        /// The manifest.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be understood.
        known: &'static str,
    },
    /// A tap whose shapes in two traces do not belong together.
    #[error(
        "{file}: tap '{tap}' has shape {found:?} here and {other:?} in the other trace; \
         record both from the same model (tap names and axes are in docs/TRACE.md)"
    )]
    Shapes {
        /// The step file of the second trace.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its shape there.
        found: Vec<usize>,
        /// Its shape in the first trace.
        other: Vec<usize>,
    },
    /// Both traces must be of the same tokens.
    #[error("step {step}: the traces hold different tokens; record both on the same tokens ({reason})")]
    Tokens {
        /// The step.
        step: usize,
        /// The first difference.
        reason: String,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} was asked for, and the model has layers 0 to {}", layers.saturating_sub(1))]
    NoSuchLayer {
        /// The layer.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A weight of another layer than those asked for is needed, and not here.
    #[error("{needed}; or record '{tap}' in every step: then it need not be computed")]
    NeededOutside {
        /// What was not recorded.
        tap: String,
        /// What is missing.
        needed: Box<firstdiff_model::Error>,
    },
    /// A file that is no list of token ids.
    #[error(
        "{file}: {reason}; expected a trace folder, or a file with the JSON of `firstdiff run --format json`, a JSON array \
         of token ids, or ids separated by commas or spaces"
    )]
    Ids {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
}
