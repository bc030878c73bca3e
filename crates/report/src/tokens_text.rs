//! Chosen tokens, for people.

use std::fmt::Write as _;

use firstdiff_compare::{
    FedOtherwise, Fork, Loop, NotFollowing, Stop, TokenKind, Tokens, TokensReport, Top, Verdict,
};

use crate::number::{count, short};

/// What is said of the tokens of a check: a line a fact.
pub(crate) fn check_lines(t: &Tokens) -> Vec<String> {
    let mut lines = Vec::new();
    if t.compared > 0 {
        lines.push(against_reference(t));
    } else if t.with_logits > 0 || t.unexplained.is_empty() {
        let recorded = format!(
            "{} choices held against their own logits and the declared sampling",
            count(t.with_logits)
        );
        lines.push(if t.not_following.is_empty() && t.with_logits > 0 {
            format!("{recorded}: they follow")
        } else if t.with_logits > 0 {
            recorded
        } else {
            "not judged: no logits were recorded for the choices".into()
        });
    }
    lines.extend(t.not_following.first().map(|n| not_following(n, t.not_following.len(), "")));
    let fed: Vec<&FedOtherwise> = t.fed_otherwise.iter().filter(|f| f.wrong).collect();
    lines.extend(fed.first().map(|f| fed_otherwise(f, fed.len(), "")));
    lines.extend(t.stops.first().map(|s| stop(s, t.stops.len(), "")));
    lines.extend(t.loops.first().map(|l| looped(l, "")));
    lines.extend(t.notes.iter().cloned());
    lines
}

/// The verdict of a check whose values are right and whose tokens are not.
pub(crate) fn tokens_headline(tokens: Option<&Tokens>) -> &'static str {
    let input = |t: &Tokens| t.not_following.is_empty() && t.fed_otherwise.iter().any(|f| f.wrong);
    if tokens.is_some_and(input) {
        "diverges: a token went in that is not the one that was chosen"
    } else {
        "diverges: another token was chosen than the values call for"
    }
}

fn against_reference(t: &Tokens) -> String {
    let Some(step) = t.first_mismatch else {
        return format!("{} compared, all as the reference chooses", count(t.compared));
    };
    let (kind, which) = match t.kind {
        Some(TokenKind::TieFlip) => ("a tie flip: rounding decides between the two", "first other token"),
        _ => ("a divergence: rounding does not explain it", "other token"),
    };
    let mut text = format!("{} compared, {which} after step {step}: {kind}", count(t.compared));
    if let Some([theirs, ours]) = t.chosen {
        let found = t.mismatches.iter().find(|m| m.step == step && m.chosen == [theirs, ours]);
        let [a, b] = spelled([theirs, ours], found.and_then(|m| m.text.as_ref()));
        let margin = t.margin.map(|m| format!(", margin {}", short(m)));
        let outside = if margin.is_some() { "" } else { ", outside the model's vocabulary" };
        text += &format!(" (engine {a}{outside}, reference {b}");
        text += &margin.unwrap_or_default();
        text += &t.noise.map_or(")".into(), |n| format!(", noise {})", short(n)));
    }
    let more = t.mismatches.len().saturating_sub(1);
    if more > 0 {
        text += &format!("; {more} more");
    }
    text
}

/// Two streams compared: the verdict first.
pub fn tokens_text(report: &TokensReport) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, r: &TokensReport) -> std::fmt::Result {
    writeln!(out, "{}", headline(r))?;
    writeln!(out)?;
    if let Some(fork) = &r.fork {
        write_fork(out, r, fork)?;
    }
    let [a, b] = r.generated;
    let prompt = r.prompt.map_or(String::new(), |p| format!(", after a prompt of {}", count(p)));
    line(out, "compared", &format!("{} tokens of {} and {}{prompt}", count(r.compared), count(a), count(b)))?;
    for side in ["a", "b"] {
        let all: Vec<&NotFollowing> = r.not_following.iter().filter(|n| n.side == side).collect();
        if let Some(first) = all.first() {
            line(out, "choice", &not_following(first, all.len(), &format!("{side}: ")))?;
        }
        let all: Vec<&FedOtherwise> = r.fed_otherwise.iter().filter(|f| f.wrong && f.side == side).collect();
        if let Some(first) = all.first() {
            line(out, "input", &fed_otherwise(first, all.len(), &format!("{side}: ")))?;
        }
        let all: Vec<&Stop> = r.stops.iter().filter(|s| s.side == side).collect();
        if let Some(first) = all.first() {
            line(out, "stop", &stop(first, all.len(), &format!("{side}: ")))?;
        }
    }
    for found in &r.loops {
        line(out, "loop", &looped(found, &format!("{}: ", found.side)))?;
    }
    for note in &r.notes {
        line(out, "note", note)?;
    }
    if let Some(next) = &r.next {
        line(out, "next", next)?;
    }
    Ok(())
}

fn headline(r: &TokensReport) -> String {
    let at = r.fork.as_ref().map_or(0, |f| f.index);
    match (r.verdict, r.kind) {
        (_, Some(TokenKind::Divergence)) => match r.wrong.as_slice() {
            [one] => format!(
                "diverges: {one} leaves the model at generated token {at}, and rounding does not explain it"
            ),
            [_, _] => format!("diverges: at generated token {at} neither side chooses what the model says"),
            _ => format!("diverges: at generated token {at}, and rounding does not explain it"),
        },
        (Verdict::Diverges, _) if !r.not_following.is_empty() => {
            "diverges: a token was chosen that does not follow from its own logits".into()
        }
        (Verdict::Diverges, _) if r.fed_otherwise.iter().any(|f| f.wrong) => {
            "diverges: a token went in that is not the one that was chosen".into()
        }
        (Verdict::Diverges, _) => "diverges: a stop id was emitted and ignored".into(),
        (Verdict::Agrees, Some(TokenKind::TieFlip)) => {
            format!("agrees: a tie at generated token {at}, which rounding decides")
        }
        (Verdict::Agrees, None) => "agrees: the same tokens".into(),
        (Verdict::Unmeasured, _) if r.fork.is_some() => {
            format!("unmeasured: the tokens part at generated token {at}, and nothing tells why")
        }
        (Verdict::Unmeasured, _) if r.empty.is_some() => {
            format!("unmeasured: {} is a trace without steps", r.empty.as_deref().unwrap_or_default())
        }
        (Verdict::Unmeasured, _) => "unmeasured: no generated tokens in common".into(),
    }
}

fn write_fork(out: &mut String, r: &TokensReport, fork: &Fork) -> std::fmt::Result {
    let [a, b] = spelled(fork.ids, fork.text.as_ref());
    let sequence = if fork.sequence == 0 { String::new() } else { format!(" of sequence {}", fork.sequence) };
    line(out, "fork", &format!("generated token {}{sequence}: a {a}, b {b}", fork.index))?;
    if let (Some(margins), Some(noises), Some(reference)) = (fork.margins, fork.noises, fork.reference) {
        for (side, name) in ["a", "b"].iter().enumerate() {
            let text = if fork.ids[side] == reference {
                format!("chose as the reference does, in {}", r.arithmetic[side])
            } else {
                let against = format!(
                    "margin {}, noise {} in {}",
                    short(margins[side]),
                    short(noises[side]),
                    r.arithmetic[side]
                );
                format!("the reference prefers {reference}: {against}")
            };
            line(out, &format!("  {name}"), &text)?;
        }
    } else if let (Some(margin), Some(noise)) = (r.margin, r.noise) {
        let text = format!(
            "{} for both sides together, where their logits differ by {}",
            short(margin),
            short(noise)
        );
        line(out, "  margin", &text)?;
    }
    if let Some(why) = &fork.unjudged {
        line(out, "  not judged", why)?;
    }
    for (name, top) in [("a", &r.top10.a), ("b", &r.top10.b), ("reference", &r.top10.reference)] {
        if let Some(top) = top {
            let best: Vec<String> = top.iter().take(5).map(best).collect();
            line(out, &format!("  best of {name}"), &best.join("  "))?;
        }
    }
    Ok(())
}

fn best(top: &Top) -> String {
    let text = top.text.as_ref().map_or(String::new(), |t| format!(" {t:?}"));
    format!("{}{text} {}", top.id, short(top.logit))
}

fn line(out: &mut String, label: &str, text: &str) -> std::fmt::Result {
    writeln!(out, "{label:<19} {text}")
}

/// `597 " not"`.
fn spelled(ids: [i64; 2], text: Option<&[String; 2]>) -> [String; 2] {
    match text {
        Some([a, b]) => [format!("{} {a:?}", ids[0]), format!("{} {b:?}", ids[1])],
        None => ids.map(|id| id.to_string()),
    }
}

fn more(total: usize) -> String {
    if total > 1 { format!("; {} more", total - 1) } else { String::new() }
}

fn not_following(n: &NotFollowing, total: usize, side: &str) -> String {
    let would = n.would_choose.map_or(String::new(), |w| format!(" instead of {w}"));
    format!(
        "{side}{} chosen{would} after step {} does not follow: {}{}",
        n.chosen,
        n.step,
        n.why,
        more(total)
    )
}

fn fed_otherwise(f: &FedOtherwise, total: usize, side: &str) -> String {
    let stale = f.stale.as_ref().map_or(String::new(), |s| format!(": it is {s}"));
    format!(
        "{side}{} went in with step {} where {} was chosen{stale}{}",
        f.fed,
        f.step,
        f.chosen,
        more(total)
    )
}

fn stop(s: &Stop, total: usize, side: &str) -> String {
    let spelling = s.spelling.as_ref().map_or(String::new(), |t| format!(" `{t}`"));
    let place =
        s.step.map_or_else(|| format!("as generated token {}", s.index), |step| format!("after step {step}"));
    let by = s.declared_by.join(", ");
    format!("{side}stop id {}{spelling} emitted {place} and ignored (declared by {by}){}", s.id, more(total))
}

fn looped(l: &Loop, side: &str) -> String {
    let what = l.text.as_ref().map_or(String::new(), |t| {
        let shown: String = t.chars().take(40).collect();
        format!(" {shown:?}{}", if shown.len() < t.len() { "…" } else { "" })
    });
    let whose = match l.whose.as_deref() {
        Some("model") => ": the model's own way without randomness, not an engine's fault",
        Some(_) => ": the engine had left the reference's choices",
        None => "",
    };
    format!(
        "{side}from generated token {} on, a block of {} repeats {} times{what}{whose}",
        l.start, l.period, l.repeats
    )
}
