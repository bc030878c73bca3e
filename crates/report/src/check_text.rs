//! A check, for people: the verdict first, the next thing to do last.

use std::fmt::Write as _;

use firstdiff_compare::{Check, Choices, Finding, MAX_RATIO, Shared, Unloaded, Verdict, is_branch};

use crate::cause_text::cause;
use crate::number::{count, short};
use crate::tokens_text::{check_lines, tokens_headline};
use crate::why_text::why;

/// The verdict and everything it rests on.
pub fn check_text(check: &Check) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, check);
    out
}

fn write(out: &mut String, check: &Check) -> std::fmt::Result {
    let incomplete = if check.complete { "" } else { "incomplete (interrupted): " };
    writeln!(out, "{incomplete}{}", headline(check))?;
    for u in &check.unloaded {
        line(out, "not loaded", &unloaded(u))?;
    }
    for (i, f) in check.findings.iter().enumerate() {
        writeln!(out)?;
        finding(out, f, check, i)?;
    }
    writeln!(out)?;
    for shared in &check.shared {
        line(out, "shared", &in_common(shared))?;
    }
    if let Some(text) = searched(check) {
        line(out, "causes", &text)?;
    }
    let c = &check.coverage;
    line(
        out,
        "compared",
        &format!("{} tensors, {} elements, {} steps", count(c.taps), count(c.elements), count(c.steps)),
    )?;
    line(out, "arithmetic", &format!("{}, {}", check.arithmetic.profile, check.arithmetic.why))?;
    for taken in &check.arithmetic.taken {
        let text =
            format!("the engine {}; nothing declares it: add to arithmetic {}", taken.what, taken.declare);
        line(out, "taken", &text)?;
    }
    if check.verdict == Verdict::Agrees
        && let Some((tap, severity)) = &check.closest
    {
        line(out, "closest", &format!("{tap}, at {} of what would be wrong", short(*severity)))?;
    }
    if let Some(t) = &check.tokens {
        for text in check_lines(t) {
            line(out, "tokens", &text)?;
        }
    }
    for text in ambiguous(check) {
        line(out, "ambiguous", &text)?;
    }
    for n in &check.not_compared {
        let steps = match n.steps.as_slice() {
            [one] => format!("step {one}"),
            many => format!("steps {}", runs(many)),
        };
        line(out, "not compared", &format!("{} in {steps}: {}", n.taps.join(" "), n.why))?;
    }
    if !c.missing.is_empty() {
        line(out, "not recorded", &c.missing.join(" "))?;
    }
    if !c.unknown.is_empty() {
        line(out, "not in model", &c.unknown.join(" "))?;
    }
    for note in &check.notes {
        line(out, "note", note)?;
    }
    if let Some(next) = next(check) {
        line(out, "next", &next)?;
    }
    Ok(())
}

/// The verdict, in one line.
fn headline(check: &Check) -> String {
    match check.verdict {
        Verdict::Agrees => match &check.coverage.layers {
            Some(l) => format!(
                "agrees, as far as {} of {} layers go ({}): rounding explains every tensor compared",
                l.checked.len(),
                l.of,
                runs(&l.checked)
            ),
            None => "agrees: rounding explains every tensor compared".into(),
        },
        Verdict::Unmeasured => "unmeasured: nothing could be compared".into(),
        Verdict::Diverges => match check.findings.first() {
            Some(f) if f.operations.len() > 1 => format!(
                "diverges: the first wrong tensor is {}; one of {} operations from {} on is wrong",
                f.tap,
                f.operations.len(),
                f.segment[0]
            ),
            Some(f) => format!("diverges: the first wrong operation is {} at {}", f.op, f.tap),
            None => tokens_headline(check.tokens.as_ref()).to_string(),
        },
    }
}

/// The first verdict, for who waits while causes are looked for; `None` where there is nothing to look for.
pub fn first_verdict(check: &Check) -> Option<String> {
    let first = check.findings.first()?;
    let more = match check.findings.len() - 1 {
        0 => String::new(),
        1 => ", and 1 more finding".into(),
        n => format!(", and {n} more findings"),
    };
    Some(format!(
        "diverges: {} at {}, step {}{more}; looking for causes ...",
        if first.operations.len() > 1 { "first wrong" } else { first.op },
        first.tap,
        first.step
    ))
}

/// What is said where a check was interrupted before its verdict was known.
pub fn interrupted() -> &'static str {
    "incomplete (interrupted): no verdict yet\n"
}

/// What all that is wrong has in common.
fn in_common(shared: &Shared) -> String {
    let all = |taps: &[String]| match taps.len() {
        2 => format!("both ({}) are", taps.join(", ")),
        n => format!("all {n} ({}) are", taps.join(", ")),
    };
    match shared {
        Shared::RowParallel { taps } => format!(
            "{} row-parallel products, and nothing else is wrong: with tensor parallelism each is a sum of partial products",
            all(taps)
        ),
        Shared::Format { format, taps } => {
            format!("{} products with {format} weights; products with others agree", all(taps))
        }
        Shared::Length { inputs, taps } => {
            format!("{} products over {} inputs; products over others agree", all(taps), count(*inputs))
        }
    }
}

/// How far causes were looked for, where that is not to the end.
fn searched(check: &Check) -> Option<String> {
    if check.causes_complete || check.findings.is_empty() {
        return None;
    }
    let Some(c) = check.candidates.filter(|_| check.complete) else {
        return Some(match check.complete {
            true => "not looked for".into(),
            false => "not all were looked for".into(),
        });
    };
    Some(format!(
        "searched {} of {} candidates within the budget; --budget 60 searches further",
        count(c.tried),
        count(c.of)
    ))
}

/// `k_proj.bias of all 24 layers is zero in what the engine used`.
pub fn unloaded(u: &Unloaded) -> String {
    let which = match u.layers.as_slice() {
        [] => String::new(),
        all if all.len() == u.of => format!(" of all {} layers", u.of),
        [one] => format!(" of layer {one}"),
        some => format!(" of layers {}", runs(some)),
    };
    let is = if u.parameters.len() > 1 { "are" } else { "is" };
    format!("{}{which} {is} {} in what the engine used", u.parameters.join(", "), u.holds)
}

pub(crate) fn line(out: &mut String, label: &str, text: &str) -> std::fmt::Result {
    writeln!(out, "{label:<13} {text}")
}

fn finding(out: &mut String, f: &Finding, check: &Check, index: usize) -> std::fmt::Result {
    let steps = match f.steps.as_slice() {
        [one] => format!("step {one}"),
        many => format!("steps {}", runs(many)),
    };
    let layers = match f.layers.as_slice() {
        [] => String::new(),
        [one] => format!(", layer {one}"),
        many => format!(", layers {}", runs(many)),
    };
    let number = if check.findings.len() > 1 { format!("[{}] ", index + 1) } else { String::new() };
    writeln!(out, "{number}{}: {steps}{layers}", f.taps.join(", "))?;
    line(out, "  segment", &format!("{} -> {}", f.segment[0], f.segment[1]))?;
    if f.operations.len() > 1 {
        line(out, "  contains", &f.operations.join(" "))?;
    }
    line(out, "  where", &f.place)?;
    match &f.choices {
        Some(c) => line(out, "  choices", &differing(c))?,
        None => sizes(out, f)?,
    }
    if let Some(text) = why(&f.why) {
        line(out, "  why", &text)?;
    }
    if let Some(u) = &f.ulps {
        let all = (u.same + u.one + u.two + u.more).max(1) as f64;
        let share = |n: usize| format!("{:.1} %", 100.0 * n as f64 / all);
        let (same, one, more) = (share(u.same), share(u.one), share(u.two + u.more));
        line(
            out,
            "  ulps",
            &format!(
                "{same} correctly rounded, {one} off by 1 ulp (one representable number), {more} by more"
            ),
        )?;
    }
    for s in &f.structure {
        line(out, "  structure", &s.detail)?;
    }
    // Where causes were not looked for, there is nothing to say of them.
    match check.candidates {
        Some(_) => cause(out, f, check.causes_complete),
        None => Ok(()),
    }
}

/// How a choice differs.
fn differing(c: &Choices) -> String {
    let preferred = match c.preferred_by {
        Some(by) if c.invalid == 0 => {
            format!(
                "; the reference prefers its own by up to {} standard deviations of the scores",
                short(by)
            )
        }
        _ => String::new(),
    };
    let invalid = if c.invalid > 0 { format!("; {} are invalid", count(c.invalid)) } else { String::new() };
    format!(
        "{} of {} selections differ from the reference{preferred}{invalid}",
        count(c.differing),
        count(c.of)
    )
}

/// The error, and what rounding explains of it.
fn sizes(out: &mut String, f: &Finding) -> std::fmt::Result {
    let e = &f.error;
    let rest = if e.non_finite > 0 { "elsewhere " } else { "" };
    line(
        out,
        "  error",
        &format!(
            "{rest}{} of the tensor's norm (largest element {}, cosine {:.6})",
            short(e.rel_l2),
            short(e.max_abs),
            e.cosine
        ),
    )?;
    let explained = if e.non_finite > 0 {
        "explains none: the exact values are finite".to_string()
    } else if f.ratio >= MAX_RATIO && f.noise.rel_l2 == 0.0 {
        "explains none: this operation does not round".to_string()
    } else {
        format!("explains {} (the noise floor)", short(f.noise.rel_l2))
    };
    line(out, "  rounding", &explained)
}

/// Choices that rounding decides, in one line for those recorded and one for the others.
fn ambiguous(check: &Check) -> Vec<String> {
    let about = |recorded: bool| {
        let all: Vec<_> = check.ambiguous.iter().filter(|a| a.recorded == recorded).collect();
        let first = all.first()?;
        let tokens: usize = all.iter().map(|a| a.tokens.len()).sum();
        let token = first.tokens.first().copied().unwrap_or_default();
        let at = format!("first: {}, step {}, token {token}", first.tap, first.step);
        Some(if recorded {
            format!(
                "{} choices differ within what rounding did to the scores ({at}); the engine's were followed",
                count(tokens)
            )
        } else {
            format!(
                "{} choices that were not recorded are decided by rounding ({at}); what follows is judged by both",
                count(tokens)
            )
        })
    };
    [true, false].into_iter().filter_map(about).collect()
}

/// What to do next.
pub(crate) fn next(check: &Check) -> Option<String> {
    match check.verdict {
        Verdict::Unmeasured => None,
        Verdict::Agrees => None,
        Verdict::Diverges => {
            let f = check.findings.first()?;
            if let Some(cause) = &f.cause {
                return Some(match &cause.separate {
                    Some(tap) => format!("record {tap}: it tells {} from the others", cause.id),
                    None => format!("firstdiff explain {}", cause.id),
                });
            }
            if let Some(unnamed) = &f.unnamed
                && let Some(tap) = &unnamed.separate
            {
                return Some(format!("record {tap}: it tells {} from the others", unnamed.explains.id));
            }
            Some(if f.operations.len() > 1 {
                let inner: Vec<&String> = f.operations.iter().filter(|o| **o != f.tap).collect();
                let passed: Vec<&String> = inner.iter().filter(|o| !is_branch(o)).copied().collect();
                let inner = if passed.is_empty() { inner } else { passed };
                let middle = inner.get(inner.len() / 2)?;
                format!("record {middle}: it lies inside the segment and halves it")
            } else {
                format!("look at the engine's {} that writes {}; its recorded inputs are right", f.op, f.tap)
            })
        }
    }
}

/// `0..3, 7`.
fn runs(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => runs.push((n, n)),
        }
    }
    let text = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}..{b}") };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}
