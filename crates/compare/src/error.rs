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
         {} (tap names and axes are in docs/TRACE.md)",
        shape_hint(found, expected)
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
    /// One row more than tokens.
    #[error(
        "{file}: tap '{tap}' has {} rows, one row more than token_ids: is a BOS token missing from token_ids?",
        rows + 1
    )]
    OneRowMore {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Rows of the step.
        rows: usize,
    },
    /// A batch that is not flattened.
    #[error(
        "{file}: tap '{tap}' has shape {found:?}, a batch: flatten it and give `sequence` (I64, one number for each row of \
         token_ids); padding is left out"
    )]
    Batch {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// More keys than rows.
    #[error(
        "{file}: tap '{tap}' has {keys} keys where the steps so far have {known} rows: whose keys the others are is not known. \
         Record key_sequence and key_position (docs/TRACE.md)"
    )]
    MoreKeys {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its keys.
        keys: usize,
        /// Keys that the trace accounts for.
        known: usize,
    },
    /// Another number of keys than declared.
    #[error(
        "{file}: tap '{tap}' has {keys} keys where key_position lists {declared}; it has one entry for each of them"
    )]
    KeysDeclared {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its keys.
        keys: usize,
        /// Entries of `key_position`.
        declared: usize,
    },
    /// Fewer rows in a batch, and nothing says which.
    #[error(
        "{file}: tap '{tap}' has {held} of {all} rows in a step of {sequences} sequences: which ones is not known. Record the \
         last row of each sequence, all rows, or say which they are in logits_rows (I64)"
    )]
    RowsOfBatch {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its rows.
        held: usize,
        /// Sequences in the step.
        sequences: usize,
        /// Rows of the step.
        all: usize,
    },
    /// Another number of rows than declared.
    #[error("{file}: tap '{tap}' has {held} rows; it may have the {declared} of logits_rows, or all {all}")]
    RowsDeclared {
        /// The step file.
        file: PathBuf,
        /// The tap.
        tap: String,
        /// Its rows.
        held: usize,
        /// Rows listed.
        declared: usize,
        /// Rows of the step.
        all: usize,
    },
    /// Declared keys, in a model whose caches hold more than keys.
    #[error(
        "{file}: key_sequence, key_position and fork cannot be given for this model: beside keys its caches hold compressed \
         entries; leave them out"
    )]
    KeyAxes {
        /// The step file.
        file: PathBuf,
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
        "{file}: 'token_ids' row {row} is {token}, outside this model's vocabulary of {vocab}; the trace is of another model, its ids are damaged, or a column beyond the vocabulary of padded logits was chosen"
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
    #[error("step {step}: the traces hold different tokens ({reason}); record both on the same tokens")]
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
    /// No file or folder of that name.
    #[error("{file}: there is no such file or folder")]
    Missing {
        /// What was asked for.
        file: PathBuf,
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

/// What is likely wrong with a shape: rows that do not fit the tokens are a matter of recording, other extents of the model.
fn shape_hint(found: &[usize], expected: &[usize]) -> String {
    let plain = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    let ([tokens, rest @ ..], found) = (expected, plain(found)) else {
        return "is the trace of this model?".into();
    };
    let width: usize = rest.iter().product();
    let product = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0);
    // Without its axis of rows a tensor may hold a single one.
    let rows = match found.as_slice() {
        all @ [rows, inner @ ..] => {
            if product(inner) == width {
                Some(*rows)
            } else if product(all) == width {
                Some(1)
            } else {
                None
            }
        }
        [] => None,
    };
    if let Some(rows) = rows.filter(|_| width > 1) {
        return match rows.checked_sub(*tokens) {
            Some(1) => "it has one row more than 'token_ids' has tokens: a BOS that is missing there?".into(),
            Some(n) if n > 0 => format!(
                "it has {n} rows more than 'token_ids' has tokens: padding, or tokens that are missing there? Each row \
                 needs its token"
            ),
            _ => format!(
                "it has {} rows fewer than 'token_ids' has tokens: only the logits, and what else follows the last \
                 layer's keys, may be of the last rows alone",
                tokens - rows
            ),
        };
    }
    if let [batch, each, inner @ ..] = found.as_slice()
        && !inner.is_empty()
        && product(inner) == width
        && batch.checked_mul(*each).is_some_and(|n| n >= *tokens)
    {
        return format!(
            "it looks like a batch of {batch}: flatten it to one row a token, leave padding out, and give each row its \
             'sequence'"
        );
    }
    "is the trace of this model?".into()
}

#[cfg(test)]
mod tests {
    use super::shape_hint;

    #[test]
    fn what_is_wrong_with_a_shape_is_said_where_it_can_be_told() {
        for (found, expected, says) in [
            (&[6, 576][..], &[5, 576][..], "one row more than 'token_ids' has tokens: a BOS"),
            (&[1, 6, 576], &[5, 576], "one row more"),
            (&[6, 4, 16], &[5, 4, 16], "one row more"),
            (&[9, 576], &[5, 576], "4 rows more"),
            (&[576], &[5, 576], "4 rows fewer"),
            (&[3, 576], &[5, 576], "2 rows fewer"),
            (&[2, 7, 128], &[14, 128], "a batch of 2"),
            (&[5, 64], &[5, 128], "is the trace of this model?"),
            (&[6, 64], &[5, 128], "is the trace of this model?"),
            (&[], &[5, 128], "is the trace of this model?"),
        ] {
            let hint = shape_hint(found, expected);
            assert!(hint.contains(says), "{found:?} {expected:?}: {hint}");
        }
    }
}
