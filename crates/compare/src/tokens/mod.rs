//! The tokens an engine chose: against its own logits, against the reference, against another's.

mod chains;
mod draws;
mod fed;
mod fork;
mod input;
pub(crate) mod late;
mod loops;
mod own;
mod pairing;
mod reference;
mod report;
mod sampling;
mod side;
mod stops;

pub(crate) use chains::chosen;
pub use fed::{FedOtherwise, Unexplained};
pub use fork::{Fork, Tops};
pub use input::Source;
pub use loops::Loop;
pub use own::NotFollowing;
pub(crate) use pairing::one_more_in_front;
pub use reference::Top;
pub use report::{TokensOptions, TokensReport, tokens};
pub use stops::Stop;

use firstdiff_model::Model;
use firstdiff_reference::Arithmetic;
use firstdiff_trace::Trace;
use serde::Serialize;

use crate::Error;
use crate::align::Alignment;
use crate::reach::{NotCompared, Reach};
use chains::{Chain, Choice};
use late::Late;
use own::{Output, Own};
use reference::{Preference, TIE, Wanted};
use sampling::Sampling;
use stops::StopSet;

/// Why tokens differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TokenKind {
    /// The two best logits lie closer together than the noise that reached them.
    #[serde(rename = "tie flip")]
    TieFlip,
    /// They do not.
    #[serde(rename = "divergence")]
    Divergence,
}

/// A choice that is not the reference's.
#[derive(Clone, Debug, Serialize)]
pub struct Mismatch {
    /// The sequence of a batch.
    pub sequence: i64,
    /// The step after which it was chosen.
    pub step: usize,
    /// Why.
    pub kind: TokenKind,
    /// How far the reference prefers its own token over the engine's, in logits; none for a token
    /// that the model does not have.
    pub margin: Option<f64>,
    /// Standard deviation of that difference under rounding in the engine's arithmetic.
    pub noise: Option<f64>,
    /// The engine's token and the reference's.
    pub chosen: [i64; 2],
    /// Their text, where the model has a tokenizer.
    pub text: Option<[String; 2]>,
}

/// The ten best of engine and reference.
#[derive(Clone, Debug, Serialize)]
pub struct BestTen {
    /// By the engine's recorded logits, where there are any.
    pub engine: Option<Vec<Top>>,
    /// By the reference's.
    pub reference: Vec<Top>,
}

/// The choices compared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tokens {
    /// Choices compared with the reference's.
    pub compared: usize,
    /// The step after which the first other token was chosen that rounding does not explain; where
    /// it explains all of them, the first.
    pub first_mismatch: Option<usize>,
    /// Why.
    pub kind: Option<TokenKind>,
    /// How far the reference prefers its own token over the engine's, in logits.
    pub margin: Option<f64>,
    /// Standard deviation of that difference under rounding in the engine's arithmetic.
    pub noise: Option<f64>,
    /// The engine's token and the reference's.
    pub chosen: Option<[i64; 2]>,
    /// Every choice that is not the reference's.
    pub mismatches: Vec<Mismatch>,
    /// The ten best at the first mismatch.
    pub top10: Option<BestTen>,
    /// Choices whose logits were recorded.
    pub with_logits: usize,
    /// Choices that the engine's own logits and declared sampling do not call for.
    pub not_following: Vec<NotFollowing>,
    /// Tokens that went in although others are recorded as chosen.
    pub fed_otherwise: Vec<FedOtherwise>,
    /// Tokens that went in alone, that nothing records as chosen, and that the recorded logits do not call for.
    pub unexplained: Vec<Unexplained>,
    /// Output that ends by repeating itself.
    pub loops: Vec<Loop>,
    /// Stop ids that were emitted and ignored.
    pub stops: Vec<Stop>,
    /// What else to know of the choices.
    pub notes: Vec<String>,
    /// Choices that were not held against the reference's.
    #[serde(skip)]
    pub(crate) not_compared: Vec<NotCompared>,
}

impl Tokens {
    fn leave(&mut self, step: usize, why: &str) {
        match self.not_compared.iter_mut().find(|n| n.why == why) {
            Some(left) if left.steps.last() != Some(&step) => left.steps.push(step),
            Some(_) => {}
            None => {
                let taps = vec!["tokens".to_string()];
                self.not_compared.push(NotCompared { taps, steps: vec![step], why: why.to_string() });
            }
        }
    }

    /// Whether a choice is wrong: rounding does not explain it, it does not follow from the engine's own logits, or
    /// it is not what went in. A stop id that was ignored is reported and is no wrong choice.
    pub fn diverge(&self) -> bool {
        self.kind == Some(TokenKind::Divergence)
            || !self.not_following.is_empty()
            || self.fed_otherwise.iter().any(|f| f.wrong)
    }
}

/// What a trace calls the only side it has.
const ENGINE: &str = "engine";

/// Judges the choices of a trace; `None` where it holds none. `late`: what was done to its logits before they were recorded.
pub(crate) fn compare(
    trace: &Trace,
    model: &Model,
    alignment: &Alignment,
    arithmetic: &Arithmetic,
    lanes: usize,
    late: Option<&Late>,
    progress: Option<&(dyn Fn(usize) + Sync)>,
) -> Result<Option<Tokens>, Error> {
    let sampling = Sampling::new(&trace.manifest);
    let remaining = late.map_or_else(|| sampling.clone(), Late::remaining);
    let chains = chains::chains(trace, sampling.declared, model.program.vocab)?;
    if chains.iter().all(|c| c.choices.is_empty() && c.uncalled.is_empty()) {
        return Ok(None);
    }
    let stops = StopSet::of_model(model);
    let known = stops.with_trace(&trace.manifest);
    let mut tokens = Tokens { notes: stops.notes(&trace.manifest), ..Tokens::default() };
    let mut owns = own::judge(ENGINE, trace, &chains, &remaining)?;
    for (chain, own) in chains.iter().zip(&mut owns) {
        own.window = late.and_then(Late::window).or(own.window);
        tokens.with_logits += own.with_logits;
        tokens.not_following.append(&mut own.not_following);
        tokens.fed_otherwise.append(&mut own.fed_otherwise);
        tokens.unexplained.append(&mut own.unexplained);
        for note in std::mem::take(&mut own.notes) {
            if !tokens.notes.contains(&note) {
                tokens.notes.push(note);
            }
        }
        if !chain.choices.is_empty() {
            let output = Output::of(chain);
            tokens.stops.extend(output.ignored_stops(ENGINE, &known));
            tokens.loops.extend(output.ending_loop(ENGINE, &known));
        }
    }
    if sampling.draws || sampling.unknown.is_some() {
        return Ok(Some(tokens));
    }
    let steps = &alignment.steps;
    against_reference(&mut tokens, (trace, &chains, &owns), &sampling, &alignment.reach, |wanted| {
        let exact = reference::preferences(model, arithmetic, steps, wanted, progress)?;
        let differ: Vec<usize> =
            (0..wanted.len()).filter(|&w| wanted[w].tokens.first() != Some(&exact[w].best)).collect();
        // Only where tokens differ is it worth executing every lane from end to end.
        let mut noises = vec![Vec::new(); wanted.len()];
        if !differ.is_empty() {
            let (some, of): (Vec<Wanted>, Vec<Preference>) =
                differ.iter().map(|&w| (wanted[w].clone(), exact[w].clone())).unzip();
            let found = reference::noise(model, arithmetic, lanes, steps, &some, &of)?;
            differ.iter().zip(found).for_each(|(&w, noise)| noises[w] = noise);
        }
        Ok((exact, noises))
    })?;
    finish(&mut tokens, &stops);
    Ok(Some(tokens))
}

type Judged = (Vec<Preference>, Vec<Vec<f64>>);

/// Compares the choices of all sequences with the reference's; `run` executes it.
fn against_reference(
    tokens: &mut Tokens,
    (trace, chains, owns): (&Trace, &[Chain], &[Own]),
    sampling: &Sampling,
    reach: &Reach,
    run: impl FnOnce(&[Wanted]) -> Result<Judged, Error>,
) -> Result<(), Error> {
    type Adjusts<'a> = Vec<Box<dyn Fn(&mut [f64]) + 'a>>;
    let mut places: Vec<(&Chain, &Choice)> = Vec::new();
    let mut adjusts: Adjusts = Vec::new();
    for (chain, own) in chains.iter().zip(owns) {
        let unknown = |c: &Choice| reach.blind(c.step, chain.sequence).is_some();
        if chain.first > 0 && chain.choices.first().is_some_and(unknown) {
            tokens.notes.push(format!(
                "sequence {} starts at position {}, and the tokens before are not in the trace: its choices are \
                 not compared with the reference's",
                chain.sequence, chain.first
            ));
        }
        if sampling.penalised() && own.window.is_none() {
            if !chain.choices.is_empty() {
                tokens.notes.push(
                    "choices are not compared with the reference's: without logits nothing tells which tokens \
                     the declared penalties count; record `logits`"
                        .into(),
                );
            }
            continue;
        }
        for choice in &chain.choices {
            if let Some(why) = reach.blind(choice.step, chain.sequence) {
                tokens.leave(choice.step, why);
                continue;
            }
            let before = chain.ids.get(..choice.index).unwrap_or(&chain.ids);
            let windows = sampling.windows(before, chain.prompt());
            let window = windows.get(own.window.unwrap_or(0)).copied().unwrap_or_default();
            places.push((chain, choice));
            adjusts.push(Box::new(move |logits: &mut [f64]| sampling.penalise(logits, window)));
        }
    }
    if places.is_empty() {
        return Ok(());
    }
    let wanted: Vec<Wanted> = places
        .iter()
        .zip(&adjusts)
        .map(|((_, c), adjust)| Wanted { step: c.step, row: c.row, tokens: vec![c.token], adjust })
        .collect();
    let (exact, noises) = run(&wanted)?;
    tokens.compared = places.len();
    let mut first: Option<(TokenKind, usize)> = None;
    for (i, ((chain, choice), (exact, noise))) in places.iter().zip(exact.iter().zip(&noises)).enumerate() {
        if exact.best == choice.token {
            continue;
        }
        let margin = exact.margins.first().copied().flatten();
        let noise = noise.first().copied().filter(|_| margin.is_some());
        let tie = margin.zip(noise).is_some_and(|(m, n)| m <= TIE * n);
        let kind = if tie { TokenKind::TieFlip } else { TokenKind::Divergence };
        let (sequence, step, chosen) = (chain.sequence, choice.step, [choice.token, exact.best]);
        tokens.mismatches.push(Mismatch { sequence, step, kind, margin, noise, chosen, text: None });
        if first.is_none_or(|(k, _)| k == TokenKind::TieFlip && kind == TokenKind::Divergence) {
            first = Some((kind, i));
            tokens.first_mismatch = Some(step);
            (tokens.kind, tokens.margin, tokens.noise, tokens.chosen) =
                (Some(kind), margin, noise, Some(chosen));
        }
    }
    if let Some((_, i)) = first {
        let (chain, choice) = places[i];
        let row = chain.logits(trace, choice.step, choice.row)?;
        let engine = row.map(|r| reference::top10(&r.values));
        tokens.top10 = Some(BestTen { engine, reference: exact[i].top.clone() });
    }
    Ok(())
}

/// Whose loops they are, and what tokens look like.
fn finish(tokens: &mut Tokens, stops: &StopSet) {
    for found in &mut tokens.loops {
        let left =
            tokens.mismatches.iter().any(|m| m.sequence == found.sequence && m.kind == TokenKind::Divergence);
        found.whose = (tokens.compared > 0).then(|| if left { ENGINE } else { "model" }.to_string());
    }
    for m in &mut tokens.mismatches {
        m.text = stops.text(&m.chosen[..1]).zip(stops.text(&m.chosen[1..])).map(|(a, b)| [a, b]);
    }
    if let Some(top) = &mut tokens.top10 {
        let lists = top.engine.iter_mut().chain([&mut top.reference]);
        lists.flatten().for_each(|t| t.text = stops.text(&[t.id]));
    }
}
