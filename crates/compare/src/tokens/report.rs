//! `firstdiff tokens`: two streams, side by side.

use firstdiff_model::Model;
use firstdiff_reference::Arithmetic;
use firstdiff_trace::{Manifest, Producer};
use serde::Serialize;

use super::chains::Chain;
use super::fed::{FedOtherwise, Unexplained};
use super::fork::{self, Fork, Judgement, Tops};
use super::input::Source;
use super::own::{NotFollowing, Output};
use super::pairing::{self, one_more_in_front};
use super::reference::top10;
use super::side::{Side, roundoff};
use super::stops::{Stop, StopSet};
use super::{Loop, TokenKind};
use crate::check::declared_model;
use crate::{Error, Verdict};

/// How to compare.
pub struct TokensOptions {
    /// The arithmetic of both sides, instead of the declared or inferred one.
    pub arithmetic: Option<Arithmetic>,
    /// Random executions from which noise is taken.
    pub lanes: usize,
}

/// Two streams compared.
#[derive(Clone, Debug, Serialize)]
pub struct TokensReport {
    /// Agrees: the same, or parted by a tie flip.
    pub verdict: Verdict,
    /// Generated tokens compared, the first different one included.
    pub compared: usize,
    /// Generated tokens of each side.
    pub generated: [usize; 2],
    /// Tokens of the prompt, where a side tells.
    pub prompt: Option<usize>,
    /// Where they part.
    pub fork: Option<Fork>,
    /// Why.
    pub kind: Option<TokenKind>,
    /// By how much the reference prefers its own token over the worse side's; without a model, the
    /// margins of both sides together.
    pub margin: Option<f64>,
    /// Standard deviation of that under rounding; without a model, the spread between the two sides'
    /// logits over the vocabulary.
    pub noise: Option<f64>,
    /// Sides whose token rounding does not explain, with a model.
    pub wrong: Vec<String>,
    /// The arithmetic of each side.
    pub arithmetic: [String; 2],
    /// The ten best at the fork.
    pub top10: Tops,
    /// Output that ends by repeating itself.
    pub loops: Vec<Loop>,
    /// Stop ids that were emitted and ignored.
    pub stops: Vec<Stop>,
    /// Choices that do not follow from the side's own logits and declared sampling.
    pub not_following: Vec<NotFollowing>,
    /// Tokens that went in although others are recorded as chosen.
    pub fed_otherwise: Vec<FedOtherwise>,
    /// Tokens that went in alone, that nothing records as chosen, and that the recorded logits do not call for.
    pub unexplained: Vec<Unexplained>,
    /// The side that is a trace without steps.
    pub empty: Option<String>,
    /// What else to know.
    pub notes: Vec<String>,
    /// What to do next.
    pub next: Option<String>,
}

const SIDES: [&str; 2] = ["a", "b"];

/// Compares two streams of tokens; with `model`, a fork is judged by the reference.
///
/// # Errors
/// When a trace cannot be read or is of another model, or the model cannot be executed.
pub fn tokens(
    a: &Source,
    b: &Source,
    model: Option<&Model>,
    options: &TokensOptions,
) -> Result<TokensReport, Error> {
    if let Some(model) = model {
        for source in [a, b] {
            if let Source::Trace(trace) = source {
                declared_model(trace, model)?;
            }
        }
    }
    let given = options.arithmetic.as_ref();
    let mut sides = [Side::new(SIDES[0], a, model, given)?, Side::new(SIDES[1], b, model, given)?];
    let (first, second) = sides.split_at_mut(1);
    first[0].complete(&second[0]);
    second[0].complete(&first[0]);
    let stops = model.map(StopSet::of_model).unwrap_or_default();
    let mut report = TokensReport {
        verdict: Verdict::Agrees,
        compared: 0,
        generated: [0, 0],
        prompt: None,
        fork: None,
        kind: None,
        margin: None,
        noise: None,
        wrong: vec![],
        arithmetic: [sides[0].arithmetic.name.clone(), sides[1].arithmetic.name.clone()],
        top10: Tops::default(),
        loops: vec![],
        stops: vec![],
        not_following: vec![],
        fed_otherwise: vec![],
        unexplained: vec![],
        empty: None,
        notes: vec![],
        next: None,
    };
    for (i, side) in sides.iter_mut().enumerate() {
        each_side(&mut report, SIDES[i], side, &stops);
        report.generated[i] = side.chains.iter().map(|c| c.ids.len() - c.prompt()).sum();
    }
    report.empty = [a, b].iter().zip(SIDES).find_map(|(source, name)| match source {
        Source::Trace(trace) if trace.steps.is_empty() => Some(name.to_string()),
        _ => None,
    });
    whose_loops(&mut report);
    let judgement = find_fork(&mut report, &sides, model, options.lanes)?;
    spell(&mut report, &stops);
    conclude(&mut report, judgement, model.is_some());
    Ok(report)
}

fn each_side(report: &mut TokensReport, name: &str, side: &mut Side, stops: &StopSet) {
    let note = |report: &mut TokensReport, text: String| {
        let text = format!("{name}: {text}");
        if !report.notes.contains(&text) {
            report.notes.push(text);
        }
    };
    let known = side.trace.map_or_else(
        || stops.with_trace(&Manifest::new(Producer::default())),
        |t| stops.with_trace(&t.manifest),
    );
    for text in side.trace.map(|t| stops.notes(&t.manifest)).unwrap_or_default() {
        note(report, text);
    }
    for (chain, own) in side.chains.iter().zip(&mut side.owns) {
        let output = Output::of(chain);
        report.stops.extend(output.ignored_stops(name, &known));
        report.loops.extend(output.ending_loop(name, &known));
        report.not_following.append(&mut own.not_following);
        report.fed_otherwise.append(&mut own.fed_otherwise);
        report.unexplained.append(&mut own.unexplained);
        for text in std::mem::take(&mut own.notes) {
            note(report, text);
        }
    }
    if !side.prompt_known && side.chains.iter().all(|c| c.prompt() == 0) {
        note(
            report,
            "the file does not tell the prompt from the output: all of its tokens are taken for both".into(),
        );
    }
}

/// Two sides that loop alike show the model's own behaviour.
fn whose_loops(report: &mut TokensReport) {
    if let [a, b] = report.loops.as_mut_slice()
        && a.side != b.side
        && (a.start, a.period) == (b.start, b.period)
    {
        (a.whose, b.whose) = (Some("model".into()), Some("model".into()));
    }
}

/// Finds the first fork that rounding does not explain; else the first.
fn find_fork(
    report: &mut TokensReport,
    sides: &[Side; 2],
    model: Option<&Model>,
    lanes: usize,
) -> Result<Option<Judgement>, Error> {
    let [a, b] = sides;
    let mut found: Option<Judgement> = None;
    if a.chains.len() != b.chains.len() {
        report.notes.push(format!(
            "a has {} sequences, b {}: those of both are compared",
            a.chains.len(),
            b.chains.len()
        ));
    }
    let pairs = pairing::pair(&a.chains, &b.chains);
    let moved: Vec<String> = pairs
        .iter()
        .map(|&(i, j)| (a.chains[i].sequence, b.chains[j].sequence))
        .filter(|(x, y)| x != y)
        .map(|(x, y)| format!("{x} with {y}"))
        .collect();
    if let Some(first) = moved.first() {
        let more = if moved.len() > 1 { format!(" and {} more", moved.len() - 1) } else { String::new() };
        report.notes.push(format!("sequences are paired by their prompts: {first}{more}"));
    }
    for (c, &(i, j)) in pairs.iter().enumerate() {
        let (x, y) = (&a.chains[i], &b.chains[j]);
        let prompt = x.prompt().max(y.prompt());
        let same = prompt <= x.ids.len().min(y.ids.len()) && x.ids[..prompt] == y.ids[..prompt];
        if c == 0 && same && (a.prompt_known || b.prompt_known) {
            report.prompt = Some(prompt);
        }
        let common = x.ids.len().min(y.ids.len());
        let Some(position) = (0..common).find(|&i| x.ids[i] != y.ids[i]) else {
            report.compared += common - prompt.min(common);
            longer(report, x, y);
            continue;
        };
        let ids = [x.ids[position], y.ids[position]];
        if position < prompt || x.given[position] || y.given[position] {
            let front = one_more_in_front(&x.ids[..x.prompt()], &y.ids[..y.prompt()], SIDES)
                .map_or(String::new(), |text| format!(": {text}"));
            report.notes.push(format!(
                "the tokens given to the two sides differ first at {position}: {} and {}; nothing after that is \
                 compared{front}. Feed both the same tokens (tokenizer, chat template)",
                ids[0], ids[1]
            ));
            report.compared += position.saturating_sub(prompt);
            continue;
        }
        report.compared += position - prompt + 1;
        let judged = judge_fork(sides, [i, j], position, prompt, ids, model, lanes)?;
        let worse = found
            .as_ref()
            .is_none_or(|f| f.kind == Some(TokenKind::TieFlip) && judged.kind != Some(TokenKind::TieFlip));
        if worse {
            let top = |side: &Side, chain: usize| {
                Ok::<_, Error>(side.logits(chain, position)?.map(|r| top10(&r.values)))
            };
            report.top10 = Tops { a: top(a, i)?, b: top(b, j)?, reference: judged.top.clone() };
            report.fork = Some(Fork {
                index: position - prompt,
                position,
                sequence: x.sequence,
                ids,
                text: None,
                reference: judged.reference,
                margins: judged.margins.filter(|m| m.iter().all(|x| x.is_finite())),
                noises: judged.noises,
                unjudged: judged.unjudged.clone(),
            });
            found = Some(judged);
        }
    }
    Ok(found)
}

/// Says so where one side goes on after the other ends.
fn longer(report: &mut TokensReport, x: &Chain, y: &Chain) {
    let (n, m) = (x.ids.len(), y.ids.len());
    if n != m {
        let (long, short) = if n > m { (SIDES[0], SIDES[1]) } else { (SIDES[1], SIDES[0]) };
        let of = if x.sequence == 0 { String::new() } else { format!(" in sequence {}", x.sequence) };
        report.notes.push(format!("{long} goes on for {} tokens where {short} ends{of}", n.abs_diff(m)));
    }
}

fn judge_fork(
    sides: &[Side; 2],
    chains: [usize; 2],
    position: usize,
    prompt: usize,
    ids: [i64; 2],
    model: Option<&Model>,
    lanes: usize,
) -> Result<Judgement, Error> {
    let unjudged = |why: &str| Ok(Judgement { unjudged: Some(why.to_string()), ..Judgement::default() });
    if let Some(i) = sides.iter().position(|s| s.sampling.draws) {
        return unjudged(&format!(
            "{} draws its tokens at random: record both with the best token taken",
            SIDES[i]
        ));
    }
    if let Some(key) = sides.iter().find_map(|s| s.sampling.unknown.as_ref()) {
        return unjudged(&format!("the declared {key} changes choices in ways not modelled"));
    }
    let [a, b] = sides;
    if let Some(model) = model {
        let chain = &a.chains[chains[0]];
        if chain.first > 0 {
            return unjudged(&format!(
                "sequence {} starts at position {}, and the tokens before are not in the trace",
                chain.sequence, chain.first
            ));
        }
        let before = &chain.ids[..position];
        let judged = [a.judged(chains[0]), b.judged(chains[1])];
        return fork::by_model(model, before, prompt, ids, judged, lanes);
    }
    let (Some(mut x), Some(mut y)) = (a.logits(chains[0], position)?, b.logits(chains[1], position)?) else {
        return unjudged("no logits were recorded on both sides, and no model is given");
    };
    for (side, chain, row) in [(a, chains[0], &mut x), (b, chains[1], &mut y)] {
        let windows = side.sampling.windows(&side.chains[chain].ids[..position], prompt);
        let window = side.judged(chain).window.unwrap_or(0);
        side.sampling.penalise(&mut row.values, windows.get(window).copied().unwrap_or_default());
    }
    Ok(fork::by_logits(&x, &y, ids, roundoff(&a.arithmetic).max(roundoff(&b.arithmetic))))
}

/// Adds text to ids.
fn spell(report: &mut TokensReport, stops: &StopSet) {
    if let Some(fork) = &mut report.fork {
        fork.text = stops.text(&fork.ids[..1]).zip(stops.text(&fork.ids[1..])).map(|(a, b)| [a, b]);
    }
    let tops = [&mut report.top10.a, &mut report.top10.b, &mut report.top10.reference];
    for top in tops.into_iter().flatten().flatten() {
        top.text = stops.text(&[top.id]);
    }
}

fn conclude(report: &mut TokensReport, judgement: Option<Judgement>, has_model: bool) {
    let unjudged = judgement.as_ref().is_some_and(|j| j.kind.is_none());
    if let Some(j) = judgement {
        (report.kind, report.margin, report.noise) = (j.kind, j.margin, j.noise);
        report.wrong = j.wrong.iter().map(|&i| SIDES[i].to_string()).collect();
    }
    let wrong = report.kind == Some(TokenKind::Divergence)
        || !report.not_following.is_empty()
        || report.fed_otherwise.iter().any(|f| f.wrong)
        || !report.stops.is_empty();
    report.verdict = if wrong {
        Verdict::Diverges
    } else if unjudged || report.compared == 0 {
        Verdict::Unmeasured
    } else {
        Verdict::Agrees
    };
    report.next = match (report.verdict, report.kind) {
        (Verdict::Unmeasured, _) if report.empty.is_some() => None,
        (Verdict::Unmeasured, _) if report.compared == 0 => {
            Some("record the same prompt on both sides, with at least one generated token each".into())
        }
        (Verdict::Unmeasured, _) if !has_model => {
            Some("give --model MODEL, or record `logits` on both sides".into())
        }
        (Verdict::Diverges, Some(TokenKind::Divergence)) if !has_model => {
            Some("give --model MODEL to see which side is right, then firstdiff check its trace".into())
        }
        (Verdict::Diverges, Some(TokenKind::Divergence)) => Some(
            "record that side with all taps, and firstdiff check TRACE --model MODEL names the operation"
                .into(),
        ),
        _ => None,
    };
}
