//! An engine's choices against its own logits: no model is needed.

use firstdiff_trace::Trace;
use serde::Serialize;

use super::chains::{Chain, Choice};
use super::draws::Draws;
use super::fed::{self, FedOtherwise, Unexplained};
use super::loops::{self, Loop};
use super::sampling::{Counting, Sampling};
use super::stops::{Stop, StopSet};
use crate::Error;

/// A chosen token that the engine's own logits and declared sampling do not call for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotFollowing {
    /// `a`, `b`, or `engine`.
    pub side: String,
    /// The sequence of a batch.
    pub sequence: i64,
    /// The step after which it was chosen; for draws that are only improbable together, the last.
    pub step: usize,
    /// The token.
    pub chosen: i64,
    /// The token that follows, where one does.
    pub would_choose: Option<i64>,
    /// Why it does not follow.
    pub why: String,
}

/// What an engine's own values say of its choices.
#[derive(Default)]
pub(crate) struct Own {
    pub not_following: Vec<NotFollowing>,
    pub notes: Vec<String>,
    /// Choices whose logits were recorded.
    pub with_logits: usize,
    /// Tokens that went in although others are recorded as chosen.
    pub fed_otherwise: Vec<FedOtherwise>,
    /// Tokens that went in alone and that neither the trace nor the logits call for.
    pub unexplained: Vec<Unexplained>,
    /// The window over which penalties count, as the choices show it: a place in
    /// `Sampling::windows`.
    pub window: Option<usize>,
}

/// Judges every choice of each sequence whose logits were recorded.
pub(crate) fn judge(
    side: &str,
    trace: &Trace,
    chains: &[Chain],
    sampling: &Sampling,
) -> Result<Vec<Own>, Error> {
    let mut owns = Vec::with_capacity(chains.len());
    for chain in chains {
        let mut own = judge_one(side, trace, chain, sampling)?;
        let (fed_otherwise, notes) = fed::otherwise(side, chain, chains);
        own.fed_otherwise = fed_otherwise;
        own.notes.extend(notes);
        own.unexplained = fed::unexplained(side, trace, chain)?;
        if let Some(first) = own.unexplained.first() {
            let pattern = fed::cut_short(side, trace, chain, &own.unexplained)?;
            if let Some((_, Some(fault))) = pattern {
                own.not_following.push(fault);
            } else {
                own.notes.push(unexplained(first, own.unexplained.len(), pattern.map(|(words, _)| words)));
            }
        }
        owns.push(own);
    }
    Ok(owns)
}

/// What is said of tokens that went in alone, where nothing tells given ones from chosen ones.
fn unexplained(first: &Unexplained, count: usize, pattern: Option<String>) -> String {
    let (what, they) = if count == 1 { ("token was", "it") } else { ("tokens were", "they") };
    let pattern = pattern.map_or(String::new(), |words| format!("; {words}"));
    format!(
        "{count} more {what} fed one at a time that the recorded logits do not call for (first: {} after step {}, \
         where they prefer {} by {:.3}){pattern}: were {they} given, or chosen? record `sampled`, and declare \
         `sampling` where tokens are drawn",
        first.token, first.step, first.would_choose, first.gap
    )
}

fn judge_one(side: &str, trace: &Trace, chain: &Chain, sampling: &Sampling) -> Result<Own, Error> {
    let mut own = Own::default();
    if let Some(key) = &sampling.unknown {
        own.notes.push(format!(
            "choices are not recomputed: the declared {key} changes them in ways not modelled"
        ));
        return Ok(own);
    }
    let prompt = chain.prompt();
    let fault = |c: &Choice, would_choose, why| NotFollowing {
        side: side.to_string(),
        sequence: chain.sequence,
        step: c.step,
        chosen: c.token,
        would_choose,
        why,
    };
    let mut draws = Draws::new(sampling);
    let mut windows: Option<Vec<usize>> = None;
    for choice in &chain.choices {
        let Some(row) = chain.logits(trace, choice.step, choice.row)? else { continue };
        own.with_logits += 1;
        let before = chain.ids.get(..choice.index).unwrap_or(&chain.ids);
        if sampling.draws {
            // Tokens that were given to the engine are told to be declared as draws: only recorded
            // choices count.
            let why = draws.fault(&row, choice.token, before, prompt).filter(|_| choice.said);
            own.not_following.extend(why.map(|why| fault(choice, None, why)));
        } else if let Some((would, why)) = sampling.greedy_fault(&row, choice.token, before, prompt) {
            own.not_following.push(fault(choice, would, why));
        } else if sampling.penalised() {
            let here = sampling.explained_by(&row, choice.token, &sampling.windows(before, prompt));
            let both = windows.take().map(|w| w.into_iter().filter(|i| here.contains(i)).collect());
            windows = Some(both.unwrap_or(here));
        }
    }
    own.window = windows.and_then(|w| w.first().copied());
    if sampling.draws {
        own.notes.extend(draws.note());
    } else if sampling.penalised()
        && !own.not_following.is_empty()
        && let Some((counting, count)) = miscounted(trace, chain, sampling)?
    {
        let why = format!(
            "the declared {} {}: under that all {count} choices follow",
            sampling.penalties(),
            counting.words()
        );
        own.not_following.iter_mut().for_each(|n| n.why.clone_from(&why));
    }
    if let (Some(why), Some(last), true) =
        (draws.surprise(), chain.choices.last(), chain.choices.iter().all(|c| c.said))
    {
        own.not_following.push(fault(last, None, why));
    }
    Ok(own)
}

/// The wrong way to count tokens under which every choice of a sequence follows, and how many choices that are.
fn miscounted(trace: &Trace, chain: &Chain, sampling: &Sampling) -> Result<Option<(Counting, usize)>, Error> {
    let prompt = chain.prompt();
    let windows = sampling.windows(&[], 0).len();
    let ways = Counting::WRONG.iter().flat_map(|c| (0..windows).map(move |w| (*c, w)));
    let mut left: Vec<(Counting, usize)> = ways.collect();
    let mut count = 0;
    for choice in &chain.choices {
        let Some(row) = chain.logits(trace, choice.step, choice.row)? else { continue };
        count += 1;
        let before = chain.ids.get(..choice.index).unwrap_or(&chain.ids);
        let windows = sampling.windows(before, prompt);
        left.retain(|&(counting, w)| {
            windows.get(w).is_some_and(|window| sampling.follows(counting, &row, choice.token, window))
        });
        if left.is_empty() {
            break;
        }
    }
    Ok(left.first().map(|&(counting, _)| (counting, count)))
}

/// The output of a sequence: the tokens generated last, from an index on.
pub(crate) struct Output<'c> {
    pub sequence: i64,
    /// All tokens.
    pub ids: &'c [i64],
    /// Of each, whether the engine chose it.
    pub chosen: Vec<bool>,
    /// Tokens before the first chosen one.
    pub prompt: usize,
    /// The step after which each was chosen, in a trace.
    pub steps: Vec<Option<usize>>,
}

impl<'c> Output<'c> {
    /// Where choices are known, those; else every token that was not given.
    pub fn of(chain: &'c Chain) -> Output<'c> {
        let mut steps = vec![None; chain.ids.len()];
        for choice in &chain.choices {
            if let (Some(step), Some(id)) = (steps.get_mut(choice.index), chain.ids.get(choice.index))
                && *id == choice.token
            {
                *step = Some(choice.step);
            }
        }
        let chosen = if chain.choices.is_empty() {
            chain.given.iter().map(|given| !given).collect()
        } else {
            steps.iter().map(Option::is_some).collect()
        };
        Output { sequence: chain.sequence, ids: &chain.ids, chosen, prompt: chain.prompt(), steps }
    }

    /// Stop ids that were emitted and after which another token was chosen.
    pub fn ignored_stops(&self, side: &str, stops: &StopSet) -> Vec<Stop> {
        let pairs = self.chosen.windows(2).enumerate().filter(|(_, w)| w[0] && w[1]);
        pairs
            .filter_map(|(i, _)| {
                let id = *self.ids.get(i)?;
                Some(Stop {
                    side: side.to_string(),
                    sequence: self.sequence,
                    index: i - self.prompt.min(i),
                    step: self.steps.get(i).copied().flatten(),
                    id,
                    spelling: stops.spelling(id),
                    declared_by: stops.ids.get(&id)?.clone(),
                })
            })
            .collect()
    }

    /// The repetition that the tokens generated last end in.
    pub fn ending_loop(&self, side: &str, stops: &StopSet) -> Option<Loop> {
        let length = self.chosen.iter().rev().take_while(|chosen| **chosen).count();
        let from = self.ids.len().min(self.chosen.len()) - length;
        let (start, period, repeats) = loops::find(self.ids.get(from..)?)?;
        let block = self.ids.get(from + start..from + start + period)?;
        Some(Loop {
            side: side.to_string(),
            sequence: self.sequence,
            start: from + start - self.prompt.min(from),
            period,
            repeats,
            whose: None,
            text: stops.text(block),
        })
    }
}
