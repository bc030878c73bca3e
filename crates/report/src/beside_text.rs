//! A check with a second trace beside it, for people.

use std::fmt::Write as _;

use firstdiff_compare::{Beside, BesideRow, Check, DiffVerdict, SameWeights, Side, Verdict, Worse};

use crate::check_text;
use crate::diff_text::{circumstances, headline};
use crate::number::short;

/// What comes before any verdict (a run that cannot be repeated, other weights), the three-way verdict, and
/// the check of the trace itself.
pub fn beside_text(check: &Check, beside: &Beside) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, beside);
    out + "\nthis trace alone:\n" + &check_text(check)
}

fn write(out: &mut String, b: &Beside) -> std::fmt::Result {
    let first = [DiffVerdict::NonDeterministic, DiffVerdict::OtherWeights];
    if first.contains(&b.diff.verdict) {
        writeln!(out, "{}", headline(&b.diff))?;
    }
    writeln!(out, "{}", three_way(b))?;
    for (label, text) in circumstances(&b.diff) {
        writeln!(out, "{label:<13} {text}")?;
    }
    if let Some(why) = &b.refused {
        writeln!(out, "{:<13} {why}", "not judged")?;
    }
    let Some(other) = &b.other else { return Ok(()) };
    if let Some((step, tap)) = &b.first {
        writeln!(
            out,
            "{:<13} {tap} in step {step}: the first that rounding does not explain on one side",
            "first"
        )?;
    }
    let moved = b.diff.moved.as_ref();
    if let Some(row) = moved.filter(|r| b.first.as_ref().is_none_or(|(s, t)| (*s, t) != (r.step, &r.tap))) {
        writeln!(
            out,
            "{:<13} {} in step {}: the first in which the two differ at all",
            "moved", row.tap, row.step
        )?;
    }
    if let (Some(here), Some(there)) = (b.this.logits, other.logits) {
        writeln!(
            out,
            "{:<13} this side {}, other side {} of their size, from the tokens alone to the end, float64",
            "logits off by",
            short(here),
            short(there)
        )?;
    }
    let worst: Vec<&BesideRow> = b.rows.iter().filter(|r| r.worse != Worse::Neither).take(8).collect();
    if !worst.is_empty() {
        writeln!(out)?;
        writeln!(out, "in units of what rounding explains    this side  other side  worse")?;
    }
    for row in worst {
        let worse = if row.worse == Worse::This { "this" } else { "other" };
        writeln!(out, "  {:<34}  {:<9}  {:<10}  {worse}", row.tap, short(row.here), short(row.there))?;
    }
    Ok(())
}

fn three_way(b: &Beside) -> String {
    let Some(other) = &b.other else {
        return "the other side cannot be judged with this model".into();
    };
    let at = |side: &Side| side.first.as_ref().map_or(String::new(), |tap| format!(" (first at {tap})"));
    match (b.worse, b.this.verdict, other.verdict) {
        (Worse::Other, Verdict::Unmeasured, _) => {
            format!("the other side is wrong{}; of this one too little was recorded", at(other))
        }
        (Worse::This, _, Verdict::Unmeasured) => {
            format!("this side is wrong{}; of the other one too little was recorded", at(&b.this))
        }
        (Worse::Other, Verdict::Diverges, _) => {
            format!("the other side is worse{}, but this side is wrong too{}", at(other), at(&b.this))
        }
        (Worse::Other, ..) => {
            format!("the other side is worse{}: rounding explains this side", at(other))
        }
        (Worse::This, _, Verdict::Diverges) => {
            format!("this side is worse{}, but the other side is wrong too{}", at(&b.this), at(other))
        }
        (Worse::This, ..) => format!("this side is worse{}: rounding explains the other side", at(&b.this)),
        (Worse::Neither, Verdict::Diverges, _) => "both sides are wrong, and about equally".into(),
        (Worse::Neither, Verdict::Agrees, Verdict::Agrees)
            if b.diff.circumstances.weights == SameWeights::No =>
        {
            "each side follows from its own inputs; they do not hold the same weights".into()
        }
        (Worse::Neither, Verdict::Agrees, Verdict::Agrees) => {
            "neither side is wrong: rounding explains each, in its own arithmetic".into()
        }
        (Worse::Neither, ..) => "too little was recorded to compare the two".into(),
    }
}
