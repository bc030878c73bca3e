//! Logits that were recorded after the sampler had worked on them.
//!
//! A sampler divides logits by its temperature and applies penalties, often in place. What is recorded then is not the
//! model's logits, and yet no operation is wrong. So where recorded logits are not the model's and the trace declares
//! a temperature or penalties, these are undone and the logits measured again. One more rounding does not matter: it
//! at most doubles the variance, and two floors are allowed.

use std::collections::HashMap;

use firstdiff_model::Model;
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::{Step, Trace};

use super::chains::{self, Chain, recorded};
use super::own;
use super::sampling::Sampling;
use crate::Error;
use crate::replay::Judged;

/// What a sampler had done to the recorded logits.
#[derive(Clone, Debug)]
pub(crate) struct Late {
    /// The temperature, as the engine held it.
    temperature: Option<f64>,
    /// The place, among [`Sampling::windows`], of the tokens that penalties counted.
    window: Option<usize>,
    /// Whether it counts once more when the engine chooses.
    pub twice: Twice,
    sampling: Sampling,
}

/// Whether what was recorded after a sampler goes through it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    /// The choices follow as it is.
    No,
    /// The choices follow both ways, and the trace declares it so.
    Declared,
    /// The choices follow only so.
    Chosen,
}

/// Undoes it, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Undo {
    late: Late,
    /// For each row of a step that a sampler worked on: the tokens that penalties count there.
    rows: HashMap<(usize, usize), Vec<i64>>,
}

impl Undo {
    fn new(late: Late, chains: &[Chain], last_only: bool) -> Undo {
        let mut rows = HashMap::new();
        for chain in chains {
            for (index, &(step, row)) in chain.rows.iter().enumerate() {
                let goes_on = chain.rows.get(index + 1).is_some_and(|next| next.0 == step);
                if last_only && goes_on {
                    continue;
                }
                let before = chain.ids.get(..=index).unwrap_or(&chain.ids);
                let counted = late.window.and_then(|w| {
                    late.sampling.windows(before, chain.prompt()).get(w).map(|tokens| tokens.to_vec())
                });
                rows.insert((step, row), counted.unwrap_or_default());
            }
        }
        Undo { late, rows }
    }

    /// Makes of the recorded logits of a step, the `number`th, what they were before.
    pub fn undo<T: Real>(&self, number: usize, step: &Step, logits: &mut Tensor<T>) {
        let width = logits.shape().last().copied().unwrap_or(0);
        let Some(count) = logits.len().checked_div(width) else { return };
        for row in 0..step.rows() {
            let (Some(tokens), Some(at)) = (self.rows.get(&(number, row)), recorded(step, row, count)) else {
                continue;
            };
            let Some(values) = logits.data_mut().get_mut(at * width..(at + 1) * width) else { continue };
            if let Some(t) = self.late.temperature {
                values.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * t));
            }
            if self.late.window.is_some() {
                self.late.sampling.forgive(tokens, |token, undone| {
                    if let Some(x) = values.get_mut(token) {
                        *x = T::from_f64(undone(x.to_f64()));
                    }
                });
            }
        }
    }
}

impl Late {
    /// How choices follow from the recorded logits.
    pub fn remaining(&self) -> Sampling {
        if self.twice != Twice::No {
            return self.sampling.clone();
        }
        self.sampling.without(self.temperature.is_some(), self.window.is_some())
    }

    /// The place, among [`Sampling::windows`], of the tokens that penalties counted.
    pub fn window(&self) -> Option<usize> {
        self.window.filter(|_| self.twice == Twice::No)
    }

    /// In words.
    pub fn note(&self) -> String {
        let mut what = Vec::new();
        if self.window.is_some() {
            what.push(self.sampling.penalties());
        }
        if self.temperature.is_some() {
            what.push(format!("temperature {}", self.sampling.temperature));
        }
        let what = what.join(" and ");
        if self.twice != Twice::No {
            let factor = self.sampling.repetition;
            let counts = if self.window.is_some() && factor != 1.0 {
                format!(", as a repetition_penalty of {}", (factor * factor * 1e6).round() / 1e6)
            } else {
                String::new()
            };
            let why = if self.twice == Twice::Chosen {
                format!("and the choices follow only if that is applied again: it counts twice{counts}")
            } else {
                format!(
                    "and trace.json declares that it is applied to them: it counts twice{counts}. If it does not, record the \
                     logits before the sampler changes them"
                )
            };
            return format!("the recorded logits are the model's with {what} applied already, {why}");
        }
        format!(
            "the logits were recorded after {what} was applied, and are the model's but for that: compared as such; record \
             them before the sampler changes them"
        )
    }
}

/// Whether recorded logits that are not the model's are what the declared sampling makes of the model's; `replay`
/// measures the logits, an operation by its place, with something undone. What is measured then takes the place of what
/// was, unless the sampling counts twice: then the recorded logits are wrong.
pub(crate) fn find(
    trace: &Trace,
    model: &Model,
    judged: &mut Vec<Judged>,
    replay: impl Fn(usize, Undo) -> Result<Vec<Judged>, Error>,
) -> Result<Option<Late>, Error> {
    let Some(op) = model.program.ops.iter().position(|op| op.tap == "logits") else { return Ok(None) };
    let sampling = Sampling::new(&trace.manifest);
    let wrong = |judged: &[Judged]| judged.iter().any(|j| j.op == op && j.measured.is_wrong());
    if (sampling.temperature == 1.0 && !sampling.penalised()) || !wrong(judged) {
        return Ok(None);
    }
    let chains = chains::chains(trace, sampling.declared, model.program.vocab)?;
    // Engines hold it in float32, and divide by it or multiply by its reciprocal.
    let held = sampling.temperature as f32;
    let temperatures: Vec<Option<f64>> = match sampling.temperature != 1.0 {
        true => vec![Some(f64::from(held)), Some(1.0 / f64::from(1.0 / held))],
        false => vec![],
    };
    let windows: Vec<Option<usize>> = match sampling.penalised() {
        true => (0..sampling.windows(&[], 0).len()).map(Some).collect(),
        false => vec![],
    };
    let several = chains.iter().any(|c| c.rows.windows(2).any(|w| w[0].0 == w[1].0));
    let mut tries: Vec<(Option<f64>, Option<usize>, bool)> = Vec::new();
    for &t in &temperatures {
        tries.push((t, None, true));
        // A temperature may be applied to all rows; penalties belong to the row that is chosen from.
        tries.extend(several.then_some((t, None, false)));
    }
    tries.extend(windows.iter().map(|&w| (None, w, true)));
    tries.extend(windows.iter().flat_map(|&w| temperatures.iter().map(move |&t| (t, w, true))));
    for (temperature, window, last_only) in tries {
        let mut late = Late { temperature, window, twice: Twice::No, sampling: sampling.clone() };
        let again = replay(op, Undo::new(late.clone(), &chains, last_only))?;
        if wrong(&again) {
            continue;
        }
        let follow = |sampling: &Sampling| -> Result<bool, Error> {
            let owns = own::judge("engine", trace, &chains, sampling)?;
            Ok(owns.iter().all(|own| own.not_following.is_empty()))
        };
        // A temperature is recorded late more often than it is applied twice, and changes no order: the choices have to
        // show it. Of penalties the trace's own account is believed unless the choices refute it.
        late.twice = match (follow(&late.remaining())?, follow(&sampling)?) {
            (false, true) => Twice::Chosen,
            (true, true) if window.is_some() => Twice::Declared,
            _ => Twice::No,
        };
        if late.twice == Twice::No {
            judged.retain(|j| j.op != op);
            judged.extend(again.into_iter().filter(|j| j.op == op));
        }
        return Ok(Some(late));
    }
    Ok(None)
}
