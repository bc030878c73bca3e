//! Tokens that went in one at a time, and that the engine did not choose as far as the trace shows.

use std::collections::{BTreeMap, BTreeSet};

use firstdiff_trace::Trace;
use serde::Serialize;

use super::chains::Chain;
use super::loops::collision;
use super::own::NotFollowing;
use super::sampling::largest;
use crate::Error;

/// A token that went in although another one is recorded as chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FedOtherwise {
    /// `a`, `b`, or `engine`.
    pub side: String,
    /// The sequence of a batch.
    pub sequence: i64,
    /// The step that it went in with.
    pub step: usize,
    /// The token recorded as chosen.
    pub chosen: i64,
    /// The one that went in.
    pub fed: i64,
    /// What that one is, where it is a token that should have gone in elsewhere.
    pub stale: Option<String>,
    /// Whether this is a wrong input; else it may have been given to the engine.
    pub wrong: bool,
}

/// A token that went in alone, that nothing records as chosen, and that the logits do not call for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unexplained {
    /// `a`, `b`, or `engine`.
    pub side: String,
    /// The sequence of a batch.
    pub sequence: i64,
    /// The step after which it would have been chosen.
    pub step: usize,
    /// The token.
    pub token: i64,
    /// The one that the logits prefer.
    pub would_choose: i64,
    /// By how much.
    pub gap: f64,
    /// How many tokens have a larger logit.
    pub better: usize,
}

/// The chance, for tokens that have nothing to do with the choices, below which a stale input is believed.
const STALE: f64 = 0.05;

/// Tokens that went in instead of the recorded choices.
///
/// A harness may feed what it likes (a text to score, a forced token), so that alone is no fault. It is one where
/// the token that went in is one that was due elsewhere: the token chosen before it, or the one chosen at the same
/// time for another sequence. A given text hits such a token by chance: with the chance `q` that two tokens of this
/// sequence are equal, for each token that it could be. Of `m` other tokens, `s` or more are then stale with the
/// chance `sum C(m, i) q^i (1 - q)^(m - i)`; a fault is believed below 5 %, and only where at least four of five
/// tokens are the recorded choices (one that breaks off: a text to score is seldom followed so well) or where
/// no fewer than half of the others, and at least four, are stale.
pub(crate) fn otherwise(side: &str, chain: &Chain, others: &[Chain]) -> (Vec<FedOtherwise>, Vec<String>) {
    let choices = |c: &Chain| -> BTreeMap<usize, i64> {
        c.choices.iter().filter(|c| c.said).map(|c| (c.index, c.token)).collect()
    };
    let chosen = choices(chain);
    let step_of = |index: usize| chain.rows.get(index).map(|r| r.0);
    let alone = |index: usize| {
        let step = step_of(index);
        step.is_some()
            && step != step_of(index + 1)
            && index.checked_sub(1).is_none_or(|i| step_of(i) != step)
    };
    let same_time: Vec<(usize, i64)> = others
        .iter()
        .filter(|o| o.sequence != chain.sequence)
        .flat_map(|o| o.choices.iter().filter(|c| c.said).map(|c| (c.step, c.token)))
        .collect();
    let mut found: Vec<FedOtherwise> = Vec::new();
    let (mut follow, mut stuck, mut sources) = (0usize, false, 1usize);
    for c in chain.choices.iter().filter(|c| c.said && alone(c.index)) {
        let (Some(&fed), Some(step)) = (chain.ids.get(c.index), step_of(c.index)) else { continue };
        if fed == c.token {
            (follow, stuck) = (follow + 1, true);
            continue;
        }
        let before = c.index.checked_sub(1);
        let earlier = before.and_then(|i| chosen.get(&i)).copied();
        // The last token of a prompt, or a choice, that goes in again and again.
        let again = before.and_then(|i| chain.ids.get(i)).copied().filter(|_| stuck || found.is_empty());
        let here = |(s, t): &(usize, i64)| (*s == c.step).then_some(*t);
        let of_others: BTreeSet<i64> = same_time.iter().filter_map(here).collect();
        let mut due: BTreeSet<i64> = of_others.iter().copied().chain(earlier).chain(again).collect();
        due.remove(&c.token);
        sources = sources.max(due.len());
        let stale = if [earlier, again].contains(&Some(fed)) {
            Some("the token before it, again".to_string())
        } else if of_others.contains(&fed) {
            Some("the token chosen for another sequence".to_string())
        } else {
            None
        };
        stuck = again == Some(fed);
        let (side, sequence) = (side.to_string(), chain.sequence);
        found.push(FedOtherwise { side, sequence, step, chosen: c.token, fed, stale, wrong: false });
    }
    let stale = found.iter().filter(|f| f.stale.is_some()).count();
    let known: Vec<i64> = chain.ids[..chain.prompt()].iter().chain(chosen.values()).copied().collect();
    let chance = tail(found.len(), stale, (sources as f64 * collision(&known)).min(1.0));
    let generation = follow >= 4 * found.len();
    let persistent = stale >= 4 && 2 * stale >= found.len();
    if stale > 0 && chance < STALE && (generation || persistent) {
        found.iter_mut().for_each(|f| f.wrong = f.stale.is_some());
    }
    let notes = notes(&found, follow);
    (found, notes)
}

/// The chance of `s` or more of `m` events of chance `q`.
fn tail(m: usize, s: usize, q: f64) -> f64 {
    let mut term = (1.0 - q).powi(m as i32);
    let mut below = 0.0;
    for i in 0..s {
        below += term;
        term *= (m - i) as f64 / (i + 1) as f64 * q / (1.0 - q).max(f64::MIN_POSITIVE);
    }
    (1.0 - below).max(0.0)
}

/// What is said of tokens that went in instead of the recorded choices.
fn notes(found: &[FedOtherwise], follow: usize) -> Vec<String> {
    let open: Vec<&FedOtherwise> = found.iter().filter(|f| !f.wrong).collect();
    let Some(first) = open.first() else { return vec![] };
    let n = open.len();
    vec![if follow < n {
        format!(
            "{n} of {} tokens that went in alone are not the recorded choices (first: {} with step {}, where {} is \
             recorded as chosen): they are taken for given ones",
            n + follow,
            first.fed,
            first.step,
            first.chosen
        )
    } else {
        format!(
            "{} went in with step {} although {} is recorded as chosen{}: was it given to the engine, or is the input \
             wrong?",
            first.fed,
            first.step,
            first.chosen,
            if n > 1 { format!(" ({} more)", n - 1) } else { String::new() }
        )
    }]
}

/// Tokens that went in alone and that the recorded logits do not call for, where nothing says how they were chosen.
pub(crate) fn unexplained(side: &str, trace: &Trace, chain: &Chain) -> Result<Vec<Unexplained>, Error> {
    let mut found = Vec::new();
    for &index in &chain.uncalled {
        let (Some(&token), Some(&(step, row))) =
            (chain.ids.get(index), index.checked_sub(1).and_then(|i| chain.rows.get(i)))
        else {
            continue;
        };
        let Some(row) = chain.logits(trace, step, row)? else { continue };
        let (Some(own), Some((best, value))) = (row.get(token), largest(&row.values)) else { continue };
        if !(value - own).is_finite() {
            continue;
        }
        found.push(Unexplained {
            side: side.to_string(),
            sequence: chain.sequence,
            step,
            token,
            would_choose: best,
            gap: value - own,
            better: row.values.iter().filter(|x| **x > own).count(),
        });
    }
    Ok(found)
}

/// Ids below this are bytes and digits in many vocabularies: a text that is spelled by them is made of low ids.
const SPELLED: i64 = 256;
/// The chance at which a pattern in tokens that were given is ruled out.
const CHANCE: f64 = 1e-9;

/// The pattern of a search that ends too early: every token that went in alone is the best of all ids below one
/// limit. In words; and, where given tokens cannot show it by chance, the fault.
///
/// A given token with `b` better ones has, if ids say nothing about logits, the lowest id of these `b + 1` with the
/// chance `1 / (b + 1)`. Common words have low ids, so the product over all must be below 10^-9, over at least four
/// tokens, and reach beyond the ids that spell bytes.
pub(crate) fn cut_short(
    side: &str,
    trace: &Trace,
    chain: &Chain,
    found: &[Unexplained],
) -> Result<Option<(String, Option<NotFollowing>)>, Error> {
    let (mut largest_fed, mut limit, mut alone) = (-1i64, i64::MAX, 0usize);
    for (index, &(step, row)) in chain.rows.iter().enumerate() {
        let next = chain.rows.get(index + 1).zip(chain.ids.get(index + 1));
        let Some((&(next_step, _), &token)) = next else { continue };
        let single = next_step != step && chain.rows.get(index + 2).is_none_or(|r| r.0 != next_step);
        if !single {
            continue;
        }
        let Some(row) = chain.logits(trace, step, row)? else { continue };
        let Some(own) = row.get(token) else { return Ok(None) };
        let better = row.values.iter().position(|x| *x > own);
        (largest_fed, alone) = (largest_fed.max(token), alone + 1);
        limit = limit.min(better.map_or(i64::MAX, |b| b as i64));
    }
    if found.len() < 2 || limit <= largest_fed || limit == i64::MAX {
        return Ok(None);
    }
    let words = format!("each of the {alone} tokens that went in alone is the best of the ids below {limit}");
    let chance: f64 = found.iter().map(|u| 1.0 / (u.better as f64 + 1.0)).product();
    let certain = found.len() >= 4 && chance < CHANCE && largest_fed >= SPELLED;
    let fault = found.first().filter(|_| certain).map(|first| NotFollowing {
        side: side.to_string(),
        sequence: chain.sequence,
        step: first.step,
        chosen: first.token,
        would_choose: Some(first.would_choose),
        why: format!(
            "{words}, and not the best of all: the search for the best token ends before id {limit} (a chance below \
             {chance:.0e} for given tokens)"
        ),
    });
    Ok(Some((words, fault)))
}

#[cfg(test)]
mod tests {
    use super::super::chains::Choice;
    use super::*;

    /// A prompt, then one row a step: what went in, and what is recorded as chosen after each.
    fn chain(prompt: &[i64], fed: &[i64], sampled: &[i64]) -> Chain {
        let mut c = Chain::default();
        for (r, id) in prompt.iter().enumerate() {
            c.ids.push(*id);
            c.given.push(true);
            c.rows.push((0, r));
        }
        for (s, token) in sampled.iter().enumerate() {
            c.choices.push(Choice { index: c.ids.len(), token: *token, step: s, row: 0, said: true });
            match fed.get(s) {
                Some(id) => {
                    c.ids.push(*id);
                    c.given.push(id != token);
                    c.rows.push((s + 1, 0));
                }
                None => c.ids.push(*token),
            }
        }
        c
    }

    const PROMPT: [i64; 14] = [50, 52, 105, 65, 113, 102, 101, 17, 19, 100, 7, 79, 69, 48];

    fn wrong(fed: &[i64], sampled: &[i64]) -> Vec<usize> {
        let (found, _) = otherwise("engine", &chain(&PROMPT, fed, sampled), &[]);
        found.iter().filter(|f| f.wrong).map(|f| f.step).collect()
    }

    #[test]
    fn the_token_before_it_going_in_again_is_a_wrong_input() {
        assert_eq!(wrong(&[33, 86, 86, 26, 53, 42], &[33, 86, 112, 26, 53, 42, 48]), [3]);
        assert!(wrong(&[33, 86, 112, 26, 53, 42], &[33, 86, 112, 26, 53, 42, 48]).is_empty());
    }

    #[test]
    fn an_input_that_is_always_one_step_late_is_wrong() {
        let sampled = [33, 86, 112, 26, 53, 42, 90];
        assert_eq!(wrong(&[48, 33, 86, 112, 26, 53], &sampled), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn given_tokens_are_no_fault_whatever_was_recorded_as_chosen() {
        // A text to score, dummy tokens, and one token that was forced.
        let sampled = [33, 86, 112, 26, 53, 42, 90];
        for fed in [[33, 2, 112, 9, 53, 8], [0, 0, 0, 0, 0, 0], [33, 86, 5, 26, 53, 42], [1, 2, 3, 4, 5, 6]] {
            assert!(wrong(&fed, &sampled).is_empty(), "{fed:?}");
        }
        // A text that says a word again, which the model does not expect.
        assert!(wrong(&[33, 33, 112, 9, 8, 42], &sampled).is_empty());
    }

    #[test]
    fn the_token_of_another_sequence_is_a_wrong_input() {
        let sampled = [33, 86, 112, 26, 53, 42, 90];
        let other =
            Chain { sequence: 1, ..chain(&[4, 5], &[60, 61, 62, 63, 64, 65], &[60, 61, 62, 63, 64, 65, 66]) };
        let one = chain(&PROMPT, &[33, 86, 62, 26, 53, 42], &sampled);
        let (found, _) = otherwise("engine", &one, &[one.clone(), other]);
        assert_eq!(found.iter().map(|f| (f.step, f.fed, f.wrong)).collect::<Vec<_>>(), [(3, 62, true)]);
    }

    #[test]
    fn the_tail_of_a_binomial_distribution_adds_up() {
        assert!((tail(1, 1, 0.25) - 0.25).abs() < 1e-12);
        assert!((tail(3, 1, 0.5) - 0.875).abs() < 1e-12);
        assert!((tail(3, 3, 0.5) - 0.125).abs() < 1e-12);
        assert_eq!(tail(4, 0, 0.3), 1.0);
        assert_eq!(tail(2, 2, 1.0), 1.0);
    }
}
