//! Two traces compared, for people: the verdict first, the next thing to do last.

use std::fmt::Write as _;

use firstdiff_compare::{Circumstances, Diff, DiffRow, DiffVerdict, Held, SameWeights};
use serde_json::Value;

use crate::number::{count, short};

/// What the two traces say about each other, and the values that say it.
pub fn diff_text(diff: &Diff) -> String {
    let mut out = format!("{}\n", headline(diff));
    // Writing to a string cannot fail.
    let _ = write(&mut out, diff);
    out
}

/// The verdict in one sentence.
pub(crate) fn headline(diff: &Diff) -> String {
    let place = |row: &Option<DiffRow>| {
        let row = row.as_ref().map(|r| format!("{} in step {}", r.tap, r.step));
        row.unwrap_or_else(|| "the chosen tokens".into())
    };
    let c = &diff.circumstances;
    match diff.verdict {
        DiffVerdict::Unmeasured if diff.steps.contains(&0) => {
            let which = match diff.steps {
                [0, 0] => "both traces have no steps",
                [0, _] => "the first trace has no steps",
                _ => "the second trace has no steps",
            };
            format!("unmeasured: {which}: the engine stopped before its first one, or nothing was recorded")
        }
        DiffVerdict::Unmeasured => "unmeasured: the traces have no value in common".into(),
        DiffVerdict::Identical => {
            format!("identical: all {} common values are equal bit for bit", count(diff.rows.len()))
        }
        DiffVerdict::Agrees => {
            "agrees: the traces differ by no more than rounding in their formats leaves".into()
        }
        DiffVerdict::NonDeterministic => format!(
            "differs: first at {}; if nothing was rebuilt between the two, the engine is not deterministic",
            place(&diff.moved)
        ),
        DiffVerdict::OtherWeights => match &c.fingerprints {
            Some([a, b]) => format!("other weights: fingerprints {a} and {b}"),
            None => format!(
                "other weights: the embeddings of the same tokens differ by {} of their size",
                short(c.embed.unwrap_or_default())
            ),
        },
        DiffVerdict::OtherArithmetic => {
            format!("other arithmetic: {}; no difference is larger than that leaves", formats(&c.held))
        }
        DiffVerdict::Differs => {
            format!("differs: more than rounding explains, first at {}", place(&diff.first))
        }
    }
}

/// What the circumstances mean, one line each.
pub(crate) fn circumstances(diff: &Diff) -> Vec<(&'static str, String)> {
    let c = &diff.circumstances;
    let mut lines = Vec::new();
    if c.weights == SameWeights::No {
        lines.push((
            "weights",
            "recorded with other weights; nothing here is a kernel bug until both run the same file".into(),
        ));
    }
    if diff.verdict == DiffVerdict::NonDeterministic {
        lines.push((
            "same engine",
            "producer, version, model, arithmetic and environment are equal, as far as both traces say"
                .into(),
        ));
    }
    if c.other_arithmetic() {
        let explained = short(c.explained);
        let text =
            format!("{}: differences up to {explained} are expected from that alone", formats(&c.held));
        lines.push(("arithmetic", text));
    }
    lines.extend(other_keys(c).map(|text| ("recorded with", text)));
    lines
}

fn formats(held: &[Held; 2]) -> String {
    let name = |h: &Held| {
        let how = if h.declared { "" } else { " (told from its values)" };
        let weights =
            if h.weights == h.activations { String::new() } else { format!(" with {} weights", h.weights) };
        let profile = if h.profile == h.activations { String::new() } else { format!(" as {}", h.profile) };
        format!("{}{profile}{weights}{how}", h.activations)
    };
    format!("this side holds {}, that side {}", name(&held[0]), name(&held[1]))
}

/// Keys of `trace.json` in which the two differ; long lists are cut.
fn other_keys(c: &Circumstances) -> Option<String> {
    const SHOWN: usize = 5;
    let said = ["model.fingerprint", "arithmetic.activations", "arithmetic.weights"];
    let others: Vec<_> = c.differing.iter().filter(|d| !said.contains(&d.key.as_str())).collect();
    let value = |v: &Value| match v {
        Value::Null => "not said".to_string(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let text = |v: &Value| {
        let text = value(v);
        if text.chars().count() > 40 {
            format!("{}…", text.chars().take(39).collect::<String>())
        } else {
            text
        }
    };
    let shown = others
        .iter()
        .take(SHOWN)
        .map(|d| format!("{}: {} / {}", d.key, text(&d.values[0]), text(&d.values[1])));
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if others.len() > SHOWN {
        let more: Vec<&str> = others[SHOWN..].iter().map(|d| d.key.as_str()).collect();
        text += &format!("; also other: {}", more.join(", "));
    }
    (!others.is_empty()).then_some(text)
}

fn write(out: &mut String, diff: &Diff) -> std::fmt::Result {
    for (label, text) in circumstances(diff) {
        say(out, label, &text)?;
    }
    let worst = diff.rows.iter().max_by(|a, b| a.rel_l2.total_cmp(&b.rel_l2)).filter(|r| r.differ > 0);
    let rows = [("moved first", &diff.moved), ("too far first", &diff.first), ("largest jump", &diff.jump)];
    let mut shown: Vec<(usize, &str)> = Vec::new();
    if worst.is_some() {
        writeln!(out)?;
        writeln!(
            out,
            "               step  tap                           rel_l2     explained  roundoffs  cosine     growth"
        )?;
    }
    for (label, row) in rows.into_iter().map(|(l, r)| (l, r.as_ref())).chain([("largest", worst)]) {
        let Some(row) = row.filter(|r| !shown.contains(&(r.step, r.tap.as_str()))) else { continue };
        shown.push((row.step, &row.tap));
        line(out, label, row)?;
    }
    if let Some(row) = diff.first.as_ref().or(diff.moved.as_ref()) {
        elements(out, row)?;
    }
    writeln!(out)?;
    let elements = diff.rows.iter().map(|r| r.elements).sum();
    let differ = diff.rows.iter().map(|r| r.differ).sum();
    let how = if diff.by_rows {
        match diff.renumbered.is_empty() {
            true => ", paired by sequence and position: the steps are divided differently",
            false => ", paired by prompt and position: sequences have other numbers",
        }
    } else {
        ""
    };
    say(
        out,
        "compared",
        &format!(
            "{} values, {} elements, {} of them differ{how}",
            count(diff.rows.len()),
            count(elements),
            count(differ)
        ),
    )?;
    let nan: usize = diff.rows.iter().map(|r| r.nan).sum();
    if let Some(row) = diff.rows.iter().find(|r| r.nan > 0) {
        let text =
            format!("{} elements are NaN in both, first in {} in step {}", count(nan), row.tap, row.step);
        say(out, "NaN", &text)?;
    }
    if let Some(step) = diff.first_other_token {
        say(
            out,
            "tokens",
            &format!("the traces chose different tokens after step {step}; later steps are not compared"),
        )?;
    }
    if let [x, y] = diff.unpaired
        && diff.by_rows
        && x + y > 0
    {
        let text = format!("{} of the first trace and {} of the second are not in both", count(x), count(y));
        say(out, "other tokens", &text)?;
    }
    if let [a, b] = diff.steps
        && a != b
        && !diff.by_rows
        && diff.first_other_token.is_none()
    {
        let text =
            format!("{} and {}: the first {} of both are compared", count(a), count(b), count(a.min(b)));
        say(out, "steps", &text)?;
    }
    if !diff.only_in_one.is_empty() {
        say(out, "in one only", &diff.only_in_one.join(" "))?;
    }
    if !diff.not_compared.is_empty() {
        say(
            out,
            "not compared",
            &format!("{}: their keys depend on the division into steps", diff.not_compared.join(" ")),
        )?;
    }
    if let Some(next) = next(diff) {
        say(out, "next", &next)?;
    }
    Ok(())
}

fn next(diff: &Diff) -> Option<String> {
    Some(match diff.verdict {
        DiffVerdict::Identical | DiffVerdict::Agrees => return None,
        DiffVerdict::Unmeasured if diff.steps.contains(&0) => return None,
        DiffVerdict::Unmeasured => "record the same taps in both: `logits`, then `layers.*.out`".into(),
        DiffVerdict::NonDeterministic => {
            let tap = diff.moved.as_ref().map_or("the sampler", |r| r.tap.as_str());
            format!(
                "if the engine was changed between the two runs, that is the change; give it another version. If not: look \
                 for a race, or an order of summation that varies, in what writes {tap}"
            )
        }
        DiffVerdict::OtherWeights => "record both again from one file, then compare".into(),
        DiffVerdict::OtherArithmetic | DiffVerdict::Differs => {
            "two traces cannot say which is right: firstdiff check TRACE --model MODEL --beside OTHER can"
                .into()
        }
    })
}

fn say(out: &mut String, label: &str, text: &str) -> std::fmt::Result {
    writeln!(out, "{label:<13} {text}")
}

fn line(out: &mut String, label: &str, row: &DiffRow) -> std::fmt::Result {
    writeln!(
        out,
        "{label:<13}  {:>4}  {:<28}  {:<9}  {:<9}  {:<9}  {:<9.6}  {}",
        row.step,
        row.tap,
        short(row.rel_l2),
        short(row.explained),
        short(row.roundoffs),
        row.cosine,
        if row.growth > 0.0 { format!("x{}", short(row.growth)) } else { "-".into() }
    )
}

/// How many elements of a value differ, by how much, and which one most.
fn elements(out: &mut String, row: &DiffRow) -> std::fmt::Result {
    let mut text = format!("{}: {} of {} elements differ", row.tap, count(row.differ), count(row.elements));
    if let Some(worst) = &row.worst {
        text += &format!(", most at {:?}: {:e} and {:e}", worst.index, worst.values[0], worst.values[1]);
    }
    writeln!(out)?;
    say(out, "elements", &text)?;
    let mut buckets = Vec::new();
    for (bucket, n) in row.ulps.iter().enumerate().filter(|(_, n)| **n > 0) {
        let range = match bucket {
            0..=2 => bucket.to_string(),
            12 => "over 1024".into(),
            _ => format!("{}-{}", (1 << (bucket - 2)) + 1, 1 << (bucket - 1)),
        };
        buckets.push(format!("{range}: {}", count(*n as usize)));
    }
    if !buckets.is_empty() {
        say(out, "ulps apart", &buckets.join(", "))?;
    }
    Ok(())
}
