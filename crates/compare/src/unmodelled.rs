//! What a trace declares and firstdiff does not model: which operations it begins at.

use firstdiff_model::{Op, OpKind};
use firstdiff_trace::declared::{Format, ProductInputs};
use firstdiff_trace::{Manifest, Trace};

/// What is not modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Inputs of products with a weight.
    Products,
    /// The format of caches.
    Caches,
    /// Whose keys a sequence reads: beams change places.
    Histories,
}

impl What {
    /// Whether the value of an operation depends on it, whatever it is computed from.
    pub fn begins_at(self, op: &Op) -> bool {
        match self {
            What::Products => {
                matches!(op.kind, OpKind::Linear(_) | OpKind::Experts(_) | OpKind::GroupedLinear(_))
            }
            What::Caches => op.kind.state().is_some(),
            What::Histories => false,
        }
    }
}

/// Something that is declared and not modelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unmodelled {
    pub what: What,
    /// Why what depends on it is not compared.
    pub why: String,
}

/// All of it.
pub(crate) fn unmodelled(trace: &Trace) -> Vec<Unmodelled> {
    let mut found = Vec::new();
    let additions = trace.manifest.arithmetic.as_ref().and_then(|a| a.additions().ok()).unwrap_or_default();
    if let Some(inputs) = additions.product_inputs.filter(|inputs| !is_modelled(*inputs)) {
        let name = match inputs {
            ProductInputs::Int8 { group: None } => "8-bit integers, one scale a token".to_string(),
            ProductInputs::Int8 { group: Some(n) } => format!("8-bit integers in groups of {n}"),
            ProductInputs::Mxfp4 => "MXFP4".to_string(),
            _ => "NVFP4".to_string(),
        };
        let why = format!("inputs of products go through {name}, which is not modelled yet");
        found.push(Unmodelled { what: What::Products, why });
    }
    if let Some(caches) = additions.caches
        && let Some(format) = [caches.keys, caches.values].into_iter().find(|f| !is_modelled_cache(*f))
    {
        let why = format!("the cache holds {}, which is not modelled yet", format.name());
        found.push(Unmodelled { what: What::Caches, why });
    }
    if let Some(beams) = beams(&trace.manifest)
        && trace.steps.iter().all(|s| s.forks.is_empty() && s.keys.is_empty())
    {
        let why = format!(
            "{beams} beams exchange their keys between steps, and the trace does not say how: give `fork`, or \
             `key_sequence` and `key_position`"
        );
        found.push(Unmodelled { what: What::Histories, why });
    }
    found
}

/// Whether rounding of the inputs of products is emulated.
pub(crate) fn is_modelled(inputs: ProductInputs) -> bool {
    !matches!(inputs, ProductInputs::Int8 { .. } | ProductInputs::Nvfp4 | ProductInputs::Mxfp4)
}

/// Whether rounding to a format of caches is emulated.
pub(crate) fn is_modelled_cache(format: Format) -> bool {
    format.is_float() || matches!(format, Format::Q8_0 | Format::Q4_0 | Format::Int8 | Format::Int4)
}

/// How many beams are searched, where there is more than one.
fn beams(manifest: &Manifest) -> Option<u64> {
    manifest.sampling.as_ref()?.get("num_beams")?.as_u64().filter(|beams| *beams > 1)
}
