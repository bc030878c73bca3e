//! Two traces compared, for people.

use std::fmt::Write as _;

use firstdiff_compare::{Diff, DiffRow};

use crate::number::{count, short};

/// What differs first, the largest jump, and the values around them.
pub fn diff_text(diff: &Diff) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, diff);
    out
}

fn write(out: &mut String, diff: &Diff) -> std::fmt::Result {
    if diff.rows.is_empty() {
        writeln!(out, "unmeasured: the traces have no value in common")?;
    } else if diff.identical {
        writeln!(out, "identical: all {} common values are equal bit for bit", count(diff.rows.len()))?;
    } else {
        match &diff.first {
            None => writeln!(out, "agrees: the traces differ by no more than their formats round")?,
            Some(row) => writeln!(out, "differs: first at {} in step {}", row.tap, row.step)?,
        }
    }
    if let (Some(first), Some(jump)) = (&diff.first, &diff.jump) {
        writeln!(out)?;
        writeln!(out, "               step  tap                           rel_l2     roundoffs  growth")?;
        line(out, "first", first)?;
        if (jump.step, &jump.tap) != (first.step, &first.tap) {
            line(out, "largest jump", jump)?;
        }
        if let Some(worst) = diff.rows.iter().max_by(|a, b| a.rel_l2.total_cmp(&b.rel_l2)) {
            line(out, "largest", worst)?;
        }
    }
    writeln!(out)?;
    writeln!(out, "compared      {} values", count(diff.rows.len()))?;
    if let Some(step) = diff.first_other_token {
        writeln!(
            out,
            "tokens        the traces chose different tokens after step {step}; later steps are not compared"
        )?;
    }
    if !diff.only_in_one.is_empty() {
        writeln!(out, "in one only   {}", diff.only_in_one.join(" "))?;
    }
    if diff.first.is_some() {
        writeln!(
            out,
            "next          two traces cannot say which is right: firstdiff check TRACE --model MODEL can"
        )?;
    }
    Ok(())
}

fn line(out: &mut String, label: &str, row: &DiffRow) -> std::fmt::Result {
    writeln!(
        out,
        "{label:<13}  {:>4}  {:<28}  {:<9}  {:<9}  {}",
        row.step,
        row.tap,
        short(row.rel_l2),
        short(row.roundoffs),
        if row.growth > 0.0 { format!("x{}", short(row.growth)) } else { "-".into() }
    )
}
