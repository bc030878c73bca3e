//! Whether an engine's arithmetic explains what else would be wrong.
//!
//! An arithmetic acts on every operation of a kind, a bug on some. So a candidate is adopted when it explains everything
//! that it raises, on more than one layer, and its errors are of the size that it calls for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use firstdiff_model::{Counts, Model, Program};
use firstdiff_reference::{Arithmetic, Budget, Executor, PER_SECOND, StepInput, Unedited, Weights, Work};
use firstdiff_trace::{Trace, tap};

use super::candidates::{Candidate, candidates};
use super::{ArithmeticUse, Formats, Taken};
use crate::align::Alignment;
use crate::evidence::Evidence;
use crate::measure::Measured;
use crate::parts::Chosen;
use crate::replay::Judged;
use crate::side_by_side::{Replayed, replay};
use crate::{CheckOptions, Error};

/// What a replay takes beside an arithmetic.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub trace: &'a Trace,
    pub model: &'a Model,
    pub alignment: &'a Alignment,
    pub chosen: &'a Chosen,
    pub steps: &'a [StepInput],
    pub options: &'a CheckOptions<'a>,
}

/// An arithmetic, and the replay in it.
pub(crate) struct Settled {
    pub arithmetic: Arithmetic,
    pub used: ArithmeticUse,
    pub replayed: Replayed,
    /// Said where an arithmetic explains the values that was not taken, because the user named another one.
    pub doubt: Option<String>,
}

/// Candidates taken together at most: engines rarely do more than two of these things undeclared.
const MOST: usize = 4;
/// Wrong tensors on which candidates are tried.
const SAMPLE: usize = 8;
/// An error of this part of the value is none that any arithmetic makes: 4-bit caches, the coarsest, err by a tenth.
const LARGE: f64 = 0.3;
/// Where right engines stay, as a part of the threshold, when what they do is allowed for.
const WELL: f64 = 0.8;
/// How near to being wrong a tensor is, as a part of its threshold, that speaks for an arithmetic as well.
const NEAR: f64 = 0.6;
/// One rounding to nearest leaves 0.71 noise floors, and that closely where elements are many: more speaks for an
/// arithmetic that explains it.
const USUAL: f64 = 0.8;
const MANY: usize = 512;
/// How much more the floor grows where the error is than elsewhere, for that to speak for an arithmetic.
const SPECIFIC: f64 = 2.0;
/// The share of errors towards zero of what is cut off: all but those that inner roundings turn round. Rounding leaves
/// half.
const CUT_OFF: f64 = 0.85;
/// Tensors whose noise floor grows by less are not raised.
const RAISED: f64 = 1.1;

/// Replays, and takes on what explains values that would be wrong.
pub(crate) fn settle(
    setting: Setting,
    possible: Vec<(Arithmetic, ArithmeticUse)>,
    given: bool,
) -> Result<Settled, Error> {
    let (arithmetic, mut used, first) = setting.likeliest(possible)?;
    if !first.judged.iter().any(|j| j.measured.is_wrong()) {
        return Ok(Settled { arithmetic, used, replayed: first, doubt: None });
    }
    let list = candidates(&arithmetic, setting.trace, setting.model);
    let counts = firstdiff_reference::counts(setting.steps, &setting.model.program.ratios());
    let replay = setting.price(&arithmetic, &counts, None);
    let trials =
        Trials { list, budget: Budget::new(TRIALS.max(replay.saturating_mul(REPLAYS))), replay, counts };
    let list = &trials.list;
    let mut stages = vec![Stage { arithmetic, replayed: first, taken: vec![] }];
    while stages.len() <= MOST {
        let Some(next) = setting.next(stages.last().unwrap_or(&stages[0]), &trials)? else { break };
        stages.push(next);
    }
    // Each is held against the last one that was believed: what is taken on later is not believed for what that explains.
    let mut accepted = 0;
    for (number, stage) in stages.iter().enumerate().skip(1) {
        let base = &stages[accepted];
        let taken: Vec<&Candidate> = stage.taken[base.taken.len()..].iter().map(|&i| &list[i]).collect();
        if explains(&base.replayed.judged, &stage.replayed.judged, &taken, &setting.model.program) {
            accepted = number;
        }
    }
    let mut stages = stages.into_iter();
    let (Some(first), rest) = (stages.next(), stages) else { unreachable!("there is a first stage") };
    let Some(stage) = accepted.checked_sub(1).and_then(|at| rest.into_iter().nth(at)) else {
        let Stage { arithmetic, replayed, .. } = first;
        return Ok(Settled { arithmetic, used, replayed, doubt: None });
    };
    let wrong = |judged: &[Judged]| judged.iter().filter(|j| j.measured.is_wrong()).count();
    let (before, after) = (wrong(&first.replayed.judged), wrong(&stage.replayed.judged));
    let of = stage.replayed.judged.len();
    if given {
        let doubt = format!(
            "{} leaves {before} of {of} tensors unexplained, {} would leave {after}: is the arithmetic given what the \
             engine does?",
            first.arithmetic.name, stage.arithmetic.name
        );
        let Stage { arithmetic, replayed, .. } = first;
        return Ok(Settled { arithmetic, used, replayed, doubt: Some(doubt) });
    }
    used.why = format!(
        "{}; {} leaves {before} of {of} tensors unexplained, {} leaves {after}",
        used.why, first.arithmetic.name, stage.arithmetic.name
    );
    used.profile = stage.arithmetic.name.clone();
    let taken = |&i: &usize| Taken { what: list[i].what.clone(), declare: list[i].declare.clone() };
    used.taken = stage.taken.iter().map(taken).collect();
    Ok(Settled { arithmetic: stage.arithmetic, used, replayed: stage.replayed, doubt: None })
}

/// An operation and a step.
type Place = (usize, usize);

/// An arithmetic on the way, and which candidates it takes on.
struct Stage {
    arithmetic: Arithmetic,
    replayed: Replayed,
    taken: Vec<usize>,
}

/// What may be tried, and how much work that may be.
struct Trials {
    list: Vec<Candidate>,
    budget: Budget,
    /// The work of one replay.
    replay: Work,
    counts: Vec<Counts>,
}

/// The least work that trials may be: ten seconds of one core.
const TRIALS: Work = 10 * PER_SECOND;
/// Trials may be as much work as so many replays.
const REPLAYS: Work = 4;

/// Where only what many engines hold in a longer format was recorded, the errors of a shorter one for all else, in
/// noise floors: near to those of one rounding.
const END_TO_END: std::ops::Range<f64> = 0.4..1.3;

impl Setting<'_> {
    /// Of several arithmetics the one that leaves fewest tensors unexplained, and the replay in it.
    fn likeliest(
        &self,
        possible: Vec<(Arithmetic, ArithmeticUse)>,
    ) -> Result<(Arithmetic, ArithmeticUse, Replayed), Error> {
        let wrong = |r: &Replayed| r.judged.iter().filter(|j| j.measured.is_wrong()).count();
        let told = Formats::of(self.trace).tell();
        let mut best: Option<(Arithmetic, ArithmeticUse, Replayed)> = None;
        for (arithmetic, used) in possible {
            let least = match &best {
                None => usize::MAX,
                Some((.., replayed)) => wrong(replayed),
            };
            if least == 0 {
                break;
            }
            let replayed = self.replay(&arithmetic)?;
            let explained = told
                || replayed
                    .judged
                    .iter()
                    .all(|j| !j.measured.is_wrong() && END_TO_END.contains(&j.measured.ratio));
            if best.is_none() || wrong(&replayed) < least && explained {
                best = Some((arithmetic, used, replayed));
            }
        }
        Ok(best.unwrap_or_else(|| unreachable!("there is always a first arithmetic")))
    }

    fn replay(&self, arithmetic: &Arithmetic) -> Result<Replayed, Error> {
        replay(self.trace, self.model, self.alignment, self.chosen, self.steps, arithmetic, self.options)
    }

    /// The candidate that explains most of a sample of what is wrong, taken on; none where nothing does.
    fn next(&self, stage: &Stage, trials: &Trials) -> Result<Option<Stage>, Error> {
        let list = &trials.list;
        let program = &self.model.program;
        let sample = sample(&stage.replayed.judged, program);
        if sample.is_empty() {
            return Ok(None);
        }
        let evidence = Evidence::new(
            self.trace,
            self.model,
            self.alignment.clone(),
            self.steps.to_vec(),
            stage.arithmetic.clone(),
            &stage.replayed,
        );
        let operations: BTreeMap<(usize, usize), BTreeSet<usize>> =
            sample.keys().map(|&place| (place, self.segment(place))).collect();
        let mut gains: Vec<(usize, usize)> = Vec::new();
        for (number, candidate) in list.iter().enumerate() {
            if stage.taken.iter().any(|&t| list[t].group == candidate.group) {
                continue;
            }
            let touched: BTreeSet<(usize, usize)> = operations
                .iter()
                .filter(|(_, ops)| ops.iter().any(|&op| (candidate.touches)(&program.ops[op])))
                .map(|(&place, _)| place)
                .collect();
            if touched.is_empty() {
                continue;
            }
            let arithmetic = (candidate.apply)(&stage.arithmetic);
            // What is left must do for a replay.
            let price = self.price(&arithmetic, &trials.counts, Some((&evidence, &touched)));
            if price.saturating_add(trials.replay) > trials.budget.left() || !trials.budget.spend(price) {
                continue;
            }
            let mut gain = 0;
            for (place, after) in self.measure(&evidence, &arithmetic, &touched)? {
                let Some(before) = sample.get(&place) else { continue };
                // Explained counts for more than come nearer: where two things act, each leaves some of it.
                gain += match after.severity() {
                    after if after <= WELL => 4,
                    after if after <= 1.0 => 3,
                    after if after < 0.5 * before.severity() => 1,
                    _ => 0,
                };
            }
            if gain > 0 {
                gains.push((gain, number));
            }
        }
        // The likelier first where several explain as much.
        gains.sort_by_key(|&(gain, number)| (Reverse(gain), number));
        let Some(&(_, first)) = gains.first() else { return Ok(None) };
        let mut best: Option<(usize, Stage)> = None;
        for (_, number) in gains.into_iter().filter(|(_, n)| list[*n].group == list[first].group) {
            if best.as_ref().is_some_and(|(left, _)| *left == 0) || !trials.budget.spend(trials.replay) {
                break;
            }
            let arithmetic = (list[number].apply)(&stage.arithmetic);
            let replayed = self.replay(&arithmetic)?;
            let touched = |j: &&Judged| {
                self.segment((j.op, j.step)).iter().any(|&op| (list[number].touches)(&program.ops[op]))
            };
            // The sample may explain as well by one that is too fine for all.
            let left = replayed.judged.iter().filter(|j| j.measured.is_wrong()).filter(touched).count();
            if best.as_ref().is_none_or(|(least, _)| left < *least) {
                let taken = stage.taken.iter().copied().chain([number]).collect();
                best = Some((left, Stage { arithmetic, replayed, taken }));
            }
        }
        Ok(best.map(|(_, stage)| stage))
    }

    /// The operations executed between recorded values and a place.
    fn segment(&self, (op, step): (usize, usize)) -> BTreeSet<usize> {
        let program = &self.model.program;
        let mut found = BTreeSet::from([op]);
        let mut pending = vec![op];
        while let Some(op) = pending.pop() {
            for input in program.ops[op].inputs.iter().map(|v| v.0) {
                // Cached rows come from every step.
                let recorded = self.alignment.placements[step][input].is_some();
                if !recorded && found.insert(input) {
                    pending.push(input);
                } else if recorded {
                    found.insert(input);
                }
            }
        }
        found
    }

    /// The work of a replay, or of predicting some places.
    fn price(
        &self,
        arithmetic: &Arithmetic,
        counts: &[Counts],
        places: Option<(&Evidence, &BTreeSet<(usize, usize)>)>,
    ) -> Work {
        let program = &self.model.program;
        let weights = Weights::held(&self.model.checkpoint, arithmetic, program, 0);
        let (arithmetic, lanes) = (Some(arithmetic), self.options.lanes);
        let executor = Executor { program, weights: &weights, arithmetic, lanes, progress: None };
        let recorded = |op: usize, step: usize| self.alignment.placements[step][op].is_some();
        match places {
            Some((evidence, places)) => executor.work(counts, &executor.needed(places, evidence), &recorded),
            None => {
                let steps = 0..self.steps.len();
                let all = |&op: &usize| steps.clone().map(move |step| (op, step));
                executor.work(counts, &self.chosen.ops.iter().flat_map(all).collect(), &recorded)
            }
        }
    }

    /// What is measured of some places in another arithmetic.
    fn measure(
        &self,
        evidence: &Evidence,
        arithmetic: &Arithmetic,
        places: &BTreeSet<(usize, usize)>,
    ) -> Result<Vec<(Place, Measured)>, Error> {
        let weights = Weights::held(&self.model.checkpoint, arithmetic, &self.model.program, KEPT);
        let executor = Executor {
            program: &self.model.program,
            weights: &weights,
            arithmetic: Some(arithmetic),
            lanes: self.options.lanes,
            progress: None,
        };
        let mut found = Vec::with_capacity(places.len());
        for predicted in executor.segment(self.steps, places, evidence, &Unedited, false)? {
            let place = (predicted.op, predicted.step);
            if let Some(measured) = evidence.measure_in(arithmetic, predicted)? {
                found.push((place, measured));
            }
        }
        Ok(found)
    }
}

/// Bytes of dequantised weights kept while a sample is measured.
const KEPT: usize = 64 << 20;

/// Wrong tensors of as many kinds, layers and steps as there are, whose errors an arithmetic might make.
fn sample<'j>(judged: &'j [Judged], program: &Program) -> BTreeMap<(usize, usize), &'j Measured> {
    let mut kinds: BTreeMap<String, Vec<&Judged>> = BTreeMap::new();
    for j in judged.iter().filter(|j| j.measured.is_wrong()) {
        let m = &j.measured;
        if m.choices.is_none() && m.non_finite == 0 && m.rel_l2 < LARGE {
            kinds.entry(tap::pattern(&program.ops[j.op].tap)).or_default().push(j);
        }
    }
    let mut found = BTreeMap::new();
    let mut turn: usize = 0;
    while found.len() < SAMPLE {
        let before = found.len();
        for of in kinds.values() {
            // From both ends: the first layer and the last, a prompt and a decoded token.
            let at = if turn.is_multiple_of(2) { turn / 2 } else { of.len().wrapping_sub(1 + turn / 2) };
            if let Some(j) = of.get(at).filter(|_| found.len() < SAMPLE && turn < of.len()) {
                found.insert((j.op, j.step), &j.measured);
            }
        }
        turn += 1;
        if found.len() == before {
            break;
        }
    }
    found
}

/// Whether what was taken on is the engine's arithmetic and not a bug explained away.
fn explains(before: &[Judged], after: &[Judged], taken: &[&Candidate], program: &Program) -> bool {
    let again: BTreeMap<(usize, usize), &Measured> =
        after.iter().map(|j| ((j.op, j.step), &j.measured)).collect();
    let pairs = before.iter().filter_map(|j| Some((j, again.get(&(j.op, j.step)).copied()?)));
    let grown = |b: &Measured, a: &Measured| a.noise_rel_l2 > RAISED * b.noise_rel_l2;
    let raised: Vec<(&Judged, &Measured)> =
        pairs.filter(|(b, a)| grown(&b.measured, a) || a.severity() < 0.9 * b.measured.severity()).collect();
    let needed = raised.iter().filter(|(b, _)| b.measured.is_wrong()).count();
    let left = raised.iter().filter(|(_, a)| a.is_wrong()).count();
    if needed == 0 {
        return false;
    }
    let layer = |j: &Judged| tap::split(&program.ops[j.op].tap).0;
    let spanned: BTreeSet<usize> = raised.iter().filter_map(|(b, _)| layer(b)).collect();
    let speaks = |b: &Measured, a: &Measured| {
        let nearer = b.severity() > NEAR && a.severity() < 0.8 * b.severity();
        let more = b.elements >= MANY && b.ratio > USUAL && a.ratio < 0.9 * b.ratio;
        b.is_wrong() || nearer || more
    };
    let layers: BTreeSet<Option<usize>> =
        raised.iter().filter(|(b, a)| speaks(&b.measured, a)).map(|(b, _)| layer(b)).collect();
    // Sums that cancel err far more than others when their parts are stored, and norms where one channel dominates when
    // their input is: an arithmetic that raises the floor just where the error is needs no second layer.
    let specific = taken.iter().all(|candidate| candidate.selective)
        && raised.iter().filter(|(b, _)| b.measured.is_wrong()).all(|(b, a)| {
            let growth = a.noise_rel_l2 / b.measured.noise_rel_l2;
            b.measured.severity() > SPECIFIC * growth * a.severity()
        });
    let wide = layers.len() > 1 || spanned.len() <= 1 || specific;
    // The size of errors tells where the arithmetic acts on every element.
    let mut ratios: Vec<f64> =
        raised.iter().filter(|(b, a)| grown(&b.measured, a)).map(|(_, a)| a.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let least = taken.iter().map(|candidate| candidate.least).fold(1.0, f64::min);
    let fits = ratios.get(ratios.len() / 2).is_none_or(|&median| median > least);
    // From end to end, what is coarse explains much that is wrong.
    let shown = !spanned.is_empty() || taken.iter().all(|candidate| !candidate.coarse);
    // Where at least half of what is raised needs it and half of that is explained, a bug may be there besides.
    let most = 2 * needed >= raised.len() && 2 * left <= needed && !spanned.is_empty();
    // What cuts off errs towards zero wherever it acts.
    let cut_off = taken.iter().filter(|candidate| candidate.cuts_off).all(|candidate| {
        let own = |b: &Judged| b.measured.is_wrong() && (candidate.touches)(&program.ops[b.op]);
        raised.iter().filter(|(b, _)| own(b)).all(|(b, _)| b.measured.towards_zero > CUT_OFF)
    });
    let direct = taken.iter().filter(|candidate| candidate.direct).all(|candidate| {
        raised.iter().any(|(b, _)| b.measured.is_wrong() && (candidate.touches)(&program.ops[b.op]))
    });
    let needs_all = taken.iter().any(|candidate| candidate.shows);
    cut_off && shown && direct && (left == 0 && wide && fits && !needs_all || most)
}
