//! Which arithmetic a trace was recorded in: what it declares, else what its values show.

mod adopt;
mod candidates;
mod declared;
mod formats;

use firstdiff_reference::Arithmetic;
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
    /// What was taken beyond that, because it explains what else would be wrong: how to declare it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<String>,
}

/// The arithmetic declared in the manifest, or inferred from the stored values.
pub(crate) fn resolve(trace: &Trace) -> Result<(Arithmetic, ArithmeticUse), Error> {
    let used = |arithmetic: &Arithmetic, declared, why| {
        let profile = arithmetic.name.clone();
        ArithmeticUse { profile, declared, why, taken: vec![] }
    };
    if let Some(arithmetic) = declared::declared(&trace.manifest, trace.path())? {
        let used = used(&arithmetic, true, "declared by the trace".to_string());
        return Ok((arithmetic, used));
    }
    let (format, why) = Formats::of(trace).activations();
    let arithmetic = Arithmetic::uniform(format);
    let used = used(&arithmetic, false, why);
    Ok((arithmetic, used))
}
