//! Which arithmetic a trace was recorded in: what it declares, else what its values show.

mod adopt;
mod candidates;
mod declared;
mod formats;

use firstdiff_reference::Arithmetic;
use firstdiff_tensor::Float;
use firstdiff_trace::Trace;
use serde::Serialize;

use crate::Error;
pub(crate) use adopt::{Setting, Settled, settle};
pub(crate) use formats::Formats;

/// The arithmetic a verdict rests on.
#[derive(Clone, Debug, Serialize)]
pub struct ArithmeticUse {
    /// The profile's name.
    pub profile: String,
    /// Whether the trace declares it (or the user did).
    pub declared: bool,
    /// Why this one.
    pub why: String,
    /// What was taken on beyond that, because it explains what else would be wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<Taken>,
}

/// Something that an engine does and its trace does not declare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// In words, after "the engine".
    pub what: String,
    /// Keys of `arithmetic` in trace.json that declare it.
    pub declare: String,
}

/// The arithmetic declared in the manifest, or inferred from the stored values.
pub(crate) fn resolve(trace: &Trace) -> Result<(Arithmetic, ArithmeticUse), Error> {
    let mut all = possible(trace)?;
    // There is always one.
    Ok(all.swap_remove(0))
}

/// The arithmetic declared in the manifest, else those that the stored values allow, the likeliest first.
pub(crate) fn possible(trace: &Trace) -> Result<Vec<(Arithmetic, ArithmeticUse)>, Error> {
    let used = |arithmetic: &Arithmetic, declared, why| {
        let profile = arithmetic.name.clone();
        ArithmeticUse { profile, declared, why, taken: vec![] }
    };
    if let Some(arithmetic) = declared::declared(&trace.manifest, trace.path())? {
        let used = used(&arithmetic, true, "declared by the trace".to_string());
        return Ok(vec![(arithmetic, used)]);
    }
    let formats = Formats::of(trace);
    let one = |format: Float| {
        let arithmetic = Arithmetic::uniform(format);
        let what = match (formats.are_all(format), formats.tell()) {
            (true, _) if trace.steps.iter().all(|s| s.taps().is_empty()) => {
                "not declared, and no values to tell it from".to_string()
            }
            (true, _) => {
                format!(
                    "not declared; {} is the shortest format that holds every recorded value",
                    format.name()
                )
            }
            (false, true) => {
                format!("not declared; {} holds most kinds of recorded activations", format.name())
            }
            (false, false) => {
                format!("not declared; {} explains what was recorded, which is held longer", format.name())
            }
        };
        let used = used(&arithmetic, false, what);
        (arithmetic, used)
    };
    Ok(formats.activations().into_iter().map(one).collect())
}
