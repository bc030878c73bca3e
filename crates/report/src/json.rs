//! Machine-readable results. Keys may be added, never removed.

use firstdiff_compare::{Check, Diff, Inspection, TokensReport};
use serde::Serialize;
use serde_json::Value;

/// A result with its format's name first.
#[derive(Serialize)]
struct Tagged<'a, T> {
    format: &'static str,
    #[serde(flatten)]
    result: &'a T,
}

fn tagged<T: Serialize>(format: &'static str, result: &T) -> Value {
    // Results are plain data with string keys: there is nothing in them that can fail to serialise.
    serde_json::to_value(Tagged { format, result }).unwrap_or_default()
}

/// The result of a check: `firstdiff.check/1`.
pub fn check(result: &Check) -> Value {
    tagged("firstdiff.check/1", result)
}

/// The result of a comparison of two traces: `firstdiff.diff/1`.
pub fn diff(result: &Diff) -> Value {
    tagged("firstdiff.diff/1", result)
}

/// Two streams of tokens compared: `firstdiff.tokens/1`.
pub fn tokens(result: &TokensReport) -> Value {
    tagged("firstdiff.tokens/1", result)
}

/// A model looked over: `firstdiff.inspect/1`.
pub fn inspect(result: &Inspection) -> Value {
    tagged("firstdiff.inspect/1", result)
}
