//! What cannot be compared, and why: what depends on keys that the trace does not show, or on something that the trace
//! declares and that is not modelled.
//!
//! Known is what follows from recorded values and from rows that are in the trace. What is recorded is known from there
//! on, whatever it was computed from. The judge asks [`Reach::of`] before it compares a value; nothing that is not known
//! is ever a finding.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use firstdiff_model::ops::AttnProbs;
use firstdiff_model::{Axis, OpKind, Program};
use firstdiff_reference::{KeyLabel, StepInput};
use firstdiff_trace::tap;
use serde::Serialize;

use crate::history::{Incomplete, looks_at};
use crate::unmodelled::{Unmodelled, What};

/// Recorded values that were not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    /// Their taps, `layers.*.attn_heads`; `tokens` stands for the tokens chosen.
    pub taps: Vec<String>,
    /// The steps.
    pub steps: Vec<usize>,
    /// Why not.
    pub why: String,
}

/// How much of a recorded value is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All that is recorded.
    All,
    /// Nothing.
    Nothing,
    /// These rows of the step.
    Rows(Vec<usize>),
    /// These entries of the key axis.
    Keys(Vec<usize>),
}

/// Why something is not known, by its place in `Reach::whys`; 0: it is known.
type Why = u16;

/// What of a trace can be compared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    places: HashMap<(usize, usize), Part>,
    /// What was left out, under each reason.
    left: BTreeMap<Why, (BTreeSet<String>, BTreeSet<usize>)>,
    whys: Vec<String>,
    blind: Vec<HashMap<i64, Why>>,
    all_tokens: Option<Why>,
}

/// What the analysis starts from.
pub(crate) struct Known<'a> {
    pub program: &'a Program,
    pub steps: &'a [StepInput],
    pub incomplete: &'a [Vec<Incomplete>],
    /// Whether a key axis lists all keys that its layer still holds, because the trace says so.
    pub declared: &'a dyn Fn(usize, Option<usize>) -> bool,
    /// Whether a value is recorded: an operation in a step.
    pub recorded: &'a dyn Fn(usize, usize) -> bool,
    pub unmodelled: &'a [Unmodelled],
    /// Steps and layers whose cache holds its rows in an order that nothing declares.
    pub unordered: &'a BTreeSet<(usize, usize)>,
}

impl Reach {
    /// How much of the recorded value of `op` in `step` is compared.
    pub fn of(&self, op: usize, step: usize) -> &Part {
        self.places.get(&(op, step)).unwrap_or(&Part::All)
    }

    /// Notes that a value was left out for another reason.
    pub fn leave(&mut self, pattern: &str, step: usize, why: &str) {
        let why = self.why(why.to_string());
        self.note(why, pattern.to_string(), step);
    }

    /// Why a choice made in `step` for `sequence` cannot be held against the reference's.
    pub fn blind(&self, step: usize, sequence: i64) -> Option<&str> {
        let why = self.all_tokens.or_else(|| self.blind.get(step)?.get(&sequence).copied())?;
        self.whys.get(usize::from(why).checked_sub(1)?).map(String::as_str)
    }

    /// What was not compared, one entry a reason.
    pub fn not_compared(&self) -> Vec<NotCompared> {
        let entry = |(why, (taps, steps)): (&Why, &(BTreeSet<String>, BTreeSet<usize>))| NotCompared {
            taps: taps.iter().cloned().collect(),
            steps: steps.iter().copied().collect(),
            why: self.whys[usize::from(*why) - 1].clone(),
        };
        self.left.iter().map(entry).collect()
    }

    fn why(&mut self, text: String) -> Why {
        let place = self.whys.iter().position(|w| *w == text).unwrap_or_else(|| {
            // Past so many reasons one stands for the rest.
            if self.whys.len() < 1000 {
                self.whys.push(text);
            }
            self.whys.len() - 1
        });
        place as Why + 1
    }

    fn note(&mut self, why: Why, tap: String, step: usize) {
        let (taps, steps) = self.left.entry(why).or_default();
        taps.insert(tap);
        steps.insert(step);
    }

    /// Finds out what of `known` can be compared.
    pub fn new(known: &Known) -> Reach {
        let mut reach = Reach::default();
        let gaps: Vec<HashMap<i64, Why>> = known
            .incomplete
            .iter()
            .map(|step| step.iter().map(|i| (i.sequence, reach.why(i.why()))).collect())
            .collect();
        let sources: Vec<(What, Why)> =
            known.unmodelled.iter().map(|u| (u.what, reach.why(u.why.clone()))).collect();
        let declares = known.steps.iter().any(|s| s.keys.step.is_some() || !s.keys.layers.is_empty());
        if gaps.iter().all(HashMap::is_empty) && sources.is_empty() && !declares && known.unordered.is_empty()
        {
            return reach;
        }
        reach.all_tokens = sources.first().map(|(_, why)| *why);
        reach.blind.clone_from(&gaps);
        let ops = &known.program.ops;
        let plain = (0..ops.len())
            .filter(|&op| matches!(ops[op].kind, OpKind::Cache(_)) && is_plain(known.program, op));
        let unwritten = reach.why("key_position lists keys that no step wrote".into());
        let order = reach.why(
            "rows of the cache are in another order than they were written in (a ring, or the first keys kept): record \
             key_position"
                .into(),
        );
        let mut walk = Walk {
            known,
            unwritten,
            order,
            gaps,
            sources,
            caches: plain.map(|op| (op, Cached::default())).collect(),
            written: HashSet::new(),
            step: 0,
            rows: HashMap::new(),
            whole: HashMap::new(),
            stuck: HashMap::new(),
        };
        for (number, step) in known.steps.iter().enumerate() {
            walk.begin(number, step);
            (0..ops.len()).for_each(|op| walk.through(op, &mut reach));
        }
        reach
    }
}

/// Whether a cache is read by attention alone, as its keys or its values.
fn is_plain(program: &Program, op: usize) -> bool {
    let reads = |r: &&firstdiff_model::Op| r.inputs.iter().any(|v| v.0 == op);
    program.ops.iter().filter(reads).all(|reader| {
        matches!(reader.kind, OpKind::AttnScores(_) | OpKind::AttnHeads(_))
            && reader.inputs.get(1).is_some_and(|v| v.0 == op)
    })
}

/// Of one cache that attention reads, what is not known.
#[derive(Default)]
struct Cached {
    /// Rows that were written, but computed from something that is not known.
    unknown: HashMap<KeyLabel, Why>,
    /// Rows that no step wrote and a recorded cache has shown.
    given: HashSet<KeyLabel>,
    /// Whether it is recorded in the current step: then its readers know all that it holds.
    recorded: bool,
}

/// Follows the program through the current step; what earlier ones left is in the caches.
struct Walk<'a> {
    known: &'a Known<'a>,
    /// For each step, its incomplete sequences.
    gaps: Vec<HashMap<i64, Why>>,
    sources: Vec<(What, Why)>,
    caches: HashMap<usize, Cached>,
    /// Why keys of sequences are not known that are declared and that no step wrote.
    unwritten: Why,
    /// Why keys are not known whose order nothing declares.
    order: Why,
    /// Keys that a step wrote, this one included.
    written: HashSet<KeyLabel>,
    step: usize,
    /// Rows that are not known, as those that read them see them.
    rows: HashMap<usize, Vec<Why>>,
    /// Values without an axis of tokens that are not known.
    whole: HashMap<usize, Why>,
    /// Those of them that stay so, because what they hold is kept.
    stuck: HashMap<usize, Why>,
}

impl Walk<'_> {
    fn begin(&mut self, number: usize, step: &StepInput) {
        self.step = number;
        self.rows.clear();
        self.whole.clear();
        for fork in &step.forks {
            let shared = |l: &&KeyLabel| l.sequence == fork.parent && l.position < fork.length;
            let child = |l: &KeyLabel| KeyLabel { sequence: fork.sequence, ..*l };
            let written: Vec<KeyLabel> = self.written.iter().filter(shared).map(child).collect();
            self.written.extend(written);
            for cached in self.caches.values_mut() {
                let unknown: Vec<(KeyLabel, Why)> = cached
                    .unknown
                    .iter()
                    .filter(|(l, _)| shared(l))
                    .map(|(l, why)| (child(l), *why))
                    .collect();
                cached.unknown.extend(unknown);
                let given: Vec<KeyLabel> = cached.given.iter().filter(shared).map(child).collect();
                cached.given.extend(given);
            }
        }
        self.written.extend(labels(step));
    }

    fn input(&self) -> &StepInput {
        &self.known.steps[self.step]
    }

    fn source(&self, op: usize) -> Option<Why> {
        self.sources.iter().find(|(what, _)| what.begins_at(&self.known.program.ops[op])).map(|s| s.1)
    }

    fn through(&mut self, op: usize, reach: &mut Reach) {
        if self.caches.contains_key(&op) {
            return self.cache(op, reach);
        }
        let (kind, axes) = (&self.known.program.ops[op].kind, &self.known.program.ops[op].axes);
        let rows = self.computed_rows(op);
        let recorded = (self.known.recorded)(op, self.step);
        if axes.contains(&Axis::Tokens) {
            let Some(rows) = rows else { return };
            if recorded {
                let known: Vec<usize> = (0..rows.len()).filter(|&r| rows[r] == 0).collect();
                let none = known.is_empty() || kind.discrete().is_some();
                self.leave(op, &rows, if none { Part::Nothing } else { Part::Rows(known) }, reach);
            } else {
                self.rows.insert(op, rows);
            }
            return;
        }
        let why = rows.and_then(|rows| rows.into_iter().find(|w| *w != 0));
        let kept = kind.state().is_some();
        let gap = self.gaps[self.step].values().next().copied().filter(|_| kept);
        let Some(why) = why.or_else(|| self.stuck.get(&op).copied()).or(gap) else { return };
        if kept {
            self.stuck.insert(op, why);
        }
        if recorded {
            self.leave(op, &[why], Part::Nothing, reach);
        } else {
            self.whole.insert(op, why);
        }
    }

    /// Rows of an operation's computed value that are not known; `None` where all are.
    fn computed_rows(&self, op: usize) -> Option<Vec<Why>> {
        let (program, input) = (self.known.program, self.input());
        let mut rows = vec![self.source(op).unwrap_or(0); input.token_ids.len()];
        let kind = &program.ops[op].kind;
        for value in &program.ops[op].inputs {
            if let Some(of) = self.rows.get(&value.0) {
                rows.iter_mut().zip(of).filter(|(row, _)| **row == 0).for_each(|(row, why)| *row = *why);
            }
            if let Some(why) = self.whole.get(&value.0) {
                rows.iter_mut().filter(|row| **row == 0).for_each(|row| *row = *why);
            }
        }
        if self.is_unordered(op)
            && matches!(kind, OpKind::AttnScores(_) | OpKind::AttnProbs(_) | OpKind::AttnHeads(_))
        {
            return Some(vec![self.order; rows.len()]);
        }
        let cache = program.ops[op].inputs.get(1).filter(|v| self.caches.contains_key(&v.0));
        let window = self.window(op);
        for (row, label) in labels(input).enumerate() {
            if rows[row] != 0 {
                continue;
            }
            let why = match (kind, cache) {
                (OpKind::AttnScores(_) | OpKind::AttnHeads(_), Some(cache)) => {
                    self.attends(cache.0, &label, window)
                }
                (OpKind::AttnProbs(_), _) => self.lists(op, &label, window),
                (OpKind::VisibleKeys(_), _) => self.gaps[self.step].get(&label.sequence).copied(),
                _ => break,
            };
            rows[row] = why.unwrap_or(0);
        }
        rows.iter().any(|why| *why != 0).then_some(rows)
    }

    /// The window of the probabilities that an attention operation belongs to.
    fn window(&self, op: usize) -> Option<usize> {
        let program = self.known.program;
        let of = |kind: &OpKind| match kind {
            OpKind::AttnProbs(AttnProbs { window, .. }) => Some(*window),
            _ => None,
        };
        let own = of(&program.ops[op].kind);
        let before = || program.ops[op].inputs.first().and_then(|v| of(&program.op(*v).kind));
        let after = || {
            program.ops.iter().find(|r| r.inputs.first().is_some_and(|v| v.0 == op)).and_then(|r| of(&r.kind))
        };
        own.or_else(before).or_else(after).flatten()
    }

    fn is_unordered(&self, op: usize) -> bool {
        self.layer(op).is_some_and(|layer| self.known.unordered.contains(&(self.step, layer)))
    }

    fn layer(&self, op: usize) -> Option<usize> {
        tap::split(&self.known.program.ops[op].tap).0
    }

    /// Whether the axis of this layer lists the keys of a row that no step wrote; why not.
    fn lists(&self, op: usize, row: &KeyLabel, window: Option<usize>) -> Option<Why> {
        let why = self.gaps[self.step].get(&row.sequence).copied()?;
        let layer = self.layer(op);
        if (self.known.declared)(self.step, layer) {
            return None;
        }
        let missing = self.missing(row, window)?;
        let axis = self.input().keys.of(layer);
        let listed = axis.is_some_and(|axis| axis.contains(&KeyLabel { position: missing, ..*row }));
        (!listed).then_some(why)
    }

    /// The first position that a row looks at and that no step wrote.
    fn missing(&self, row: &KeyLabel, window: Option<usize>) -> Option<u32> {
        let (from, to) = looks_at(row, window);
        let of = self.known.incomplete[self.step].iter().find(|i| i.sequence == row.sequence)?;
        of.shown.first_missing(from, to)
    }

    /// Why a row does not know all keys that it attends to.
    fn attends(&self, cache: usize, row: &KeyLabel, window: Option<usize>) -> Option<Why> {
        let cached = self.caches.get(&cache)?;
        if cached.recorded {
            return self.lists(cache, row, window);
        }
        if let Some(why) = self.histories().filter(|_| self.is_old(row.sequence)) {
            return Some(why);
        }
        let (from, to) = looks_at(row, window);
        let seen = |l: &KeyLabel| l.sequence == row.sequence && (from..=to).contains(&l.position);
        let Some(axis) = self.input().keys.of(self.layer(cache)) else {
            let unknown = cached.unknown.iter().find(|(l, _)| seen(l)).map(|(_, why)| *why);
            let gap =
                || self.missing(row, window).and_then(|_| self.gaps[self.step].get(&row.sequence).copied());
            return unknown.or_else(gap);
        };
        let of_key = |l: &KeyLabel| match cached.unknown.get(l) {
            Some(why) => Some(*why),
            None if self.written.contains(l) || cached.given.contains(l) => None,
            None => Some(self.gaps[self.step].get(&l.sequence).copied().unwrap_or(self.unwritten)),
        };
        axis.iter().filter(|l| seen(l)).find_map(of_key).or_else(|| self.lists(cache, row, window))
    }

    /// Why it is not known which keys a sequence reads, where beams change places.
    fn histories(&self) -> Option<Why> {
        self.sources.iter().find(|(what, _)| *what == What::Histories).map(|s| s.1)
    }

    /// Whether a sequence has rows in earlier steps.
    fn is_old(&self, sequence: i64) -> bool {
        self.known.steps[..self.step].iter().any(|s| s.sequence.contains(&sequence))
    }

    /// A cache that attention reads.
    fn cache(&mut self, op: usize, reach: &mut Reach) {
        let recorded = (self.known.recorded)(op, self.step);
        let source = self.source(op).unwrap_or(0);
        let input = self.known.program.ops[op].inputs.first().and_then(|v| self.rows.get(&v.0)).cloned();
        let own: Vec<KeyLabel> = labels(self.input()).collect();
        let Some(cached) = self.caches.get_mut(&op) else { return };
        for (row, label) in own.iter().enumerate() {
            match input.as_ref().map_or(0, |rows| rows[row]).max(source) {
                0 => cached.unknown.remove(label),
                why => cached.unknown.insert(*label, why),
            };
        }
        cached.recorded = recorded;
        if recorded {
            self.compare_cache(op, reach);
            let axis = self.input().keys.of(self.layer(op)).cloned();
            let written = &self.written;
            let Some(cached) = self.caches.get_mut(&op) else { return };
            // What was written is known from here, where the rows before it are not.
            own.iter().for_each(|label| {
                cached.unknown.remove(label);
            });
            let missing = |l: &&KeyLabel| **l != KeyLabel::EMPTY && !written.contains(l);
            cached.given.extend(axis.iter().flat_map(|axis| axis.iter()).filter(missing));
        }
    }

    /// Which entries of a recorded cache are compared: those of rows that a step wrote, and that are known.
    fn compare_cache(&self, op: usize, reach: &mut Reach) {
        let Some(cached) = self.caches.get(&op) else { return };
        let histories = self.histories();
        let step = self.input();
        let own: HashSet<KeyLabel> = labels(step).collect();
        let of_key = |l: &KeyLabel| -> Option<Why> {
            if let Some(why) = cached.unknown.get(l).copied().or_else(|| self.source(op)) {
                return Some(why);
            }
            if let Some(why) = histories.filter(|_| !own.contains(l)) {
                return Some(why);
            }
            let known = self.written.contains(l) || cached.given.contains(l);
            (!known).then(|| self.gaps[self.step].get(&l.sequence).copied().unwrap_or(self.unwritten))
        };
        let Some(axis) = step.keys.of(self.layer(op)) else {
            // Which of the keys stored it holds is known from the number of its rows alone.
            let why = cached.unknown.values().copied().max().or_else(|| self.source(op));
            let why = why.or(self.is_unordered(op).then_some(self.order));
            let why = why.or(self.gaps[self.step].values().next().copied());
            let why = why.or(histories.filter(|_| step.sequence.iter().any(|q| self.is_old(*q))));
            if let Some(why) = why {
                self.leave(op, &[why], Part::Nothing, reach);
            }
            return;
        };
        let whys: Vec<Option<Why>> =
            axis.iter().map(|l| if *l == KeyLabel::EMPTY { Some(0) } else { of_key(l) }).collect();
        let kept: Vec<usize> = (0..axis.len()).filter(|&i| whys[i].is_none()).collect();
        if kept.len() < axis.len() {
            let whys: Vec<Why> = whys.into_iter().flatten().collect();
            let compared = if kept.is_empty() { Part::Nothing } else { Part::Keys(kept) };
            self.leave(op, &whys, compared, reach);
        }
    }

    fn leave(&self, op: usize, whys: &[Why], part: Part, reach: &mut Reach) {
        let pattern = tap::pattern(&self.known.program.ops[op].tap);
        let distinct: BTreeSet<Why> = whys.iter().copied().filter(|why| *why != 0).collect();
        distinct.into_iter().for_each(|why| reach.note(why, pattern.clone(), self.step));
        reach.places.insert((op, self.step), part);
    }
}

/// Whose keys the rows of a step are.
fn labels(step: &StepInput) -> impl Iterator<Item = KeyLabel> {
    step.sequence.iter().zip(&step.positions).map(|(&sequence, &position)| KeyLabel { sequence, position })
}
