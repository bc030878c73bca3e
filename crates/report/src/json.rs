//! Machine-readable results. Keys may be added, never removed.

use firstdiff_compare::{Beside, Check, Diff, Inspection, TokensReport};
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
    let mut value = tagged("firstdiff.check/1", result);
    if let Some(value) = value.as_object_mut() {
        value.insert("next".into(), crate::check_text::next(result).into());
    }
    value
}

/// A check that was interrupted before its verdict was known: `firstdiff.check/1` without a verdict.
pub fn interrupted() -> Value {
    serde_json::json!({"format": "firstdiff.check/1", "verdict": null, "complete": false, "causes_complete": false})
}

/// A check with a second trace beside it: `firstdiff.check/1`, with the keys `beside` and, before them, what the
/// two traces say of each other without a model.
pub fn check_beside(result: &Check, beside: &Beside) -> Value {
    let mut value = check(result);
    let mut three_way = serde_json::to_value(beside).unwrap_or_default();
    let mut direct = diff(&beside.diff);
    if let (Some(three_way), Some(direct)) = (three_way.as_object_mut(), direct.as_object_mut()) {
        // Value by value the two stand in `firstdiff diff`.
        direct.shift_remove("rows");
        three_way.insert("diff".into(), direct.clone().into());
    }
    if let Some(value) = value.as_object_mut() {
        value.insert("beside".into(), three_way);
    }
    value
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
