//! A check, for people: the verdict first, the next thing to do last.

use std::fmt::Write as _;

use firstdiff_compare::{Check, Choices, Finding, MAX_RATIO, Unloaded, Verdict};

use crate::number::{count, short};
use crate::tokens_text::{check_lines, tokens_headline};

/// The verdict and everything it rests on.
pub fn check_text(check: &Check) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, check);
    out
}

fn write(out: &mut String, check: &Check) -> std::fmt::Result {
    match check.verdict {
        Verdict::Agrees => match &check.coverage.layers {
            Some(l) => writeln!(
                out,
                "agrees, as far as {} of {} layers go ({}): rounding explains every value compared",
                l.checked.len(),
                l.of,
                runs(&l.checked)
            )?,
            None => writeln!(out, "agrees: rounding explains every value compared")?,
        },
        Verdict::Unmeasured => writeln!(out, "unmeasured: nothing could be compared")?,
        Verdict::Diverges => match check.findings.first() {
            Some(f) if f.operations.len() > 1 => writeln!(
                out,
                "diverges: the first wrong value is {}; one of {} operations from {} on is wrong",
                f.tap,
                f.operations.len(),
                f.segment[0]
            )?,
            Some(f) => writeln!(out, "diverges: the first wrong operation is {} at {}", f.op, f.tap)?,
            None => writeln!(out, "{}", tokens_headline(check.tokens.as_ref()))?,
        },
    }
    for u in &check.unloaded {
        line(out, "not loaded", &unloaded(u))?;
    }
    for (i, f) in check.findings.iter().enumerate() {
        writeln!(out)?;
        finding(out, f, check.findings.len() > 1, i)?;
    }
    writeln!(out)?;
    let c = &check.coverage;
    line(
        out,
        "compared",
        &format!("{} values, {} elements, {} steps", count(c.taps), count(c.elements), count(c.steps)),
    )?;
    line(out, "arithmetic", &format!("{}, {}", check.arithmetic.profile, check.arithmetic.why))?;
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

fn line(out: &mut String, label: &str, text: &str) -> std::fmt::Result {
    writeln!(out, "{label:<13} {text}")
}

fn finding(out: &mut String, f: &Finding, numbered: bool, index: usize) -> std::fmt::Result {
    let steps = match f.steps.as_slice() {
        [one] => format!("step {one}"),
        many => format!("steps {}", runs(many)),
    };
    let layers = match f.layers.as_slice() {
        [] => String::new(),
        [one] => format!(", layer {one}"),
        many => format!(", layers {}", runs(many)),
    };
    let number = if numbered { format!("[{}] ", index + 1) } else { String::new() };
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
    if let Some(u) = &f.ulps {
        let all = (u.same + u.one + u.two + u.more).max(1) as f64;
        let share = |n: usize| format!("{:.1} %", 100.0 * n as f64 / all);
        let (same, one, more) = (share(u.same), share(u.one), share(u.two + u.more));
        line(out, "  ulps", &format!("{same} as correctly rounded, {one} one off, {more} more"))?;
    }
    for s in &f.structure {
        line(out, "  structure", &s.detail)?;
    }
    if let Some(scale) = f.scale.filter(|_| f.structure.iter().all(|s| s.kind != "factor")) {
        line(out, "  scale", &format!("every element is {scale:.6} times what it should be"))?;
    }
    cause(out, f)
}

/// How a choice differs.
fn differing(c: &Choices) -> String {
    let preferred = match c.preferred_by {
        Some(by) if c.invalid == 0 => {
            format!(", preferred by up to {} deviations of what rounding did to the scores", short(by))
        }
        _ => String::new(),
    };
    let invalid = if c.invalid > 0 {
        format!(", {} of them no choice at all", count(c.invalid))
    } else {
        String::new()
    };
    format!("{} of {} are others than the reference's{preferred}{invalid}", count(c.differing), count(c.of))
}

/// The error, and what rounding explains of it.
fn sizes(out: &mut String, f: &Finding) -> std::fmt::Result {
    let e = &f.error;
    let rest = if e.non_finite > 0 { "elsewhere " } else { "" };
    line(
        out,
        "  error",
        &format!(
            "{rest}{} of the value (largest {}, cosine {:.6})",
            short(e.rel_l2),
            short(e.max_abs),
            e.cosine
        ),
    )?;
    let explained = if e.non_finite > 0 {
        "none: the exact values are finite".to_string()
    } else if f.ratio >= MAX_RATIO && f.noise.rel_l2 == 0.0 {
        "none: this operation does not round".to_string()
    } else {
        format!("explains {}: the error is {} times that", short(f.noise.rel_l2), short(f.ratio))
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

/// The cause and what speaks for it, or what came nearest.
fn cause(out: &mut String, f: &Finding) -> std::fmt::Result {
    let Some(cause) = &f.cause else {
        line(out, "  cause", "not known: nothing tried explains it")?;
        if let Some(r) = f.rejected.first() {
            line(
                out,
                "  nearest",
                &format!("{} ({}) leaves {} noise floors", r.id, r.detail, short(r.residual)),
            )?;
        }
        return Ok(());
    };
    line(out, "  cause", &format!("{}: {}", cause.id, cause.detail))?;
    line(
        out,
        "  evidence",
        &format!(
            "under it, {} noise floors are left of {}; 2 are allowed",
            short(cause.residual),
            short(f.ratio)
        ),
    )?;
    if let Some(e) = &cause.element {
        let index: Vec<String> = e.index.iter().map(ToString::to_string).collect();
        line(
            out,
            "  for example",
            &format!(
                "{}[{}]: engine {}, model {}, under the cause {}",
                e.tap,
                index.join(","),
                short(e.engine),
                short(e.exact),
                short(e.hypothesis)
            ),
        )?;
    }
    for other in &cause.equal {
        line(out, "  or", &format!("{}: {}; it predicts the same", other.id, other.detail))?;
    }
    if let Some(tap) = &cause.separate {
        line(out, "  separate", &format!("record {tap}: there they differ"))?;
    }
    if let Some(r) = f.rejected.first() {
        line(out, "  not", &format!("{} ({}), which leaves {}", r.id, r.detail, short(r.residual)))?;
    }
    Ok(())
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

/// Whether other values bypass this one on their way: when it is right, what comes before it need not be.
fn is_branch(tap: &str) -> bool {
    const BRANCHES: [&str; 20] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "q_norm",
        "k_norm",
        "q_rope",
        "k_rope",
        "k_cache",
        "v_cache",
        "gate_proj",
        "up_proj",
        "router_logits",
        "router_scores",
        "router_topk",
        "router_weights",
        "experts_out",
        "shared_gate_proj",
        "shared_up_proj",
        "shared_act",
        "shared_out",
    ];
    BRANCHES.contains(&tap.rsplit('.').next().unwrap_or(tap))
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
