//! What the reference would choose, teacher-forced on the engine's own tokens.

use firstdiff_model::{Model, Program};
use firstdiff_reference::{Arithmetic, Computed, Executor, KeyValues, StepInput, Taps, Weights};
use firstdiff_tensor::{Real, Tensor};
use serde::Serialize;

use crate::Error;

/// Standard deviations within which a margin is a tie: all but about one in 10^6 for a normal
/// distribution, with room for the deviation being estimated from a handful of executions.
pub(crate) const TIE: f64 = 5.0;

/// One of the best tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Top {
    /// Its id.
    pub id: i64,
    /// Its logit.
    pub logit: f64,
    /// Its text, with a model that has a tokenizer.
    pub text: Option<String>,
}

/// The ten best of a row of logits.
pub(crate) fn top10(row: &[f64]) -> Vec<Top> {
    let mut best: Vec<usize> = Vec::with_capacity(11);
    for (i, x) in row.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
        if best.len() == 10 && best.last().is_some_and(|&l| row[l] >= *x) {
            continue;
        }
        let at = best.partition_point(|&b| row[b] >= *x);
        best.insert(at, i);
        best.truncate(10);
    }
    best.iter().map(|&i| Top { id: i as i64, logit: row[i], text: None }).collect()
}

/// Changes a row of logits as the engine says it does before it chooses.
pub(crate) type Adjust<'a> = &'a dyn Fn(&mut [f64]);

/// A choice to look at.
#[derive(Clone)]
pub(crate) struct Wanted<'a> {
    pub step: usize,
    pub row: usize,
    /// What the engine chose.
    pub tokens: Vec<i64>,
    pub adjust: Adjust<'a>,
}

/// What the reference prefers there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preference {
    pub best: i64,
    /// How far it prefers its own over each token of the engine's; `None` for ids it does not have.
    pub margins: Vec<Option<f64>>,
    pub top: Vec<Top>,
}

fn preference(row: &[f64], tokens: &[i64]) -> Preference {
    let Some((best, value)) = super::sampling::largest(row) else { return Preference::default() };
    let of = |t: &i64| usize::try_from(*t).ok().and_then(|t| row.get(t)).map(|x| value - x);
    Preference { best, margins: tokens.iter().map(of).collect(), top: top10(row) }
}

/// Executes `steps` exactly and says what the reference prefers at each wanted place.
pub(crate) fn preferences(
    model: &Model,
    arithmetic: &Arithmetic,
    steps: &[StepInput],
    wanted: &[Wanted],
    progress: Option<&(dyn Fn(usize) + Sync)>,
) -> Result<Vec<Preference>, Error> {
    let weights = Weights::held(&model.checkpoint, arithmetic, &model.program, 0);
    let program = &model.program;
    let executor = Executor { program, weights: &weights, arithmetic: None, lanes: 0, progress };
    let mut out = vec![Preference::default(); wanted.len()];
    let mut rows = Rows::new(program, wanted, false, |at: usize, rows: &[Vec<f64>]| {
        if let (Some(place), Some(wanted), Some(row)) = (out.get_mut(at), wanted.get(at), rows.first()) {
            *place = preference(row, &wanted.tokens);
        }
    });
    executor.execute::<f32>(steps, &mut KeyValues::new(program.ops.len()), &mut rows)?;
    Ok(out)
}

/// Standard deviations, under random rounding from end to end, of how far the reference prefers its
/// own token over each of the wanted ones: one list a wanted place.
///
/// A handful of executions estimates one deviation poorly, and one that comes out small by luck
/// would make a tie a divergence. So it is at least that of the ten best tokens together.
pub(crate) fn noise(
    model: &Model,
    arithmetic: &Arithmetic,
    lanes: usize,
    steps: &[StepInput],
    wanted: &[Wanted],
    exact: &[Preference],
) -> Result<Vec<Vec<f64>>, Error> {
    let weights = Weights::held(&model.checkpoint, arithmetic, &model.program, 0);
    let program = &model.program;
    let executor =
        Executor { program, weights: &weights, arithmetic: Some(arithmetic), lanes, progress: None };
    let mut out = vec![Vec::new(); wanted.len()];
    let mut rows = Rows::new(program, wanted, true, |at: usize, lanes: &[Vec<f64>]| {
        if let (Some(place), Some(wanted), Some(exact)) = (out.get_mut(at), wanted.get(at), exact.get(at)) {
            *place = deviations(lanes, &wanted.tokens, exact);
        }
    });
    let last = wanted.iter().map(|w| w.step).max().unwrap_or(0);
    let steps = steps.get(..=last).unwrap_or(steps);
    executor.execute::<f32>(steps, &mut KeyValues::new(program.ops.len()), &mut rows)?;
    Ok(out)
}

fn deviations(lanes: &[Vec<f64>], tokens: &[i64], exact: &Preference) -> Vec<f64> {
    // The first lane rounds to nearest; the others tell how far rounding may carry.
    let lanes = lanes.get(1..).unwrap_or_default();
    let at = |row: &[f64], t: i64| usize::try_from(t).ok().and_then(|t| row.get(t)).copied().unwrap_or(0.0);
    let square = |token: i64, margin: f64| {
        let squares = lanes.iter().map(|l| (at(l, exact.best) - at(l, token) - margin).powi(2));
        squares.sum::<f64>() / lanes.len().max(1) as f64
    };
    let best = exact.top.first().map_or(0.0, |t| t.logit);
    let others: Vec<f64> = exact.top.iter().skip(1).map(|t| square(t.id, best - t.logit)).collect();
    let together = others.iter().sum::<f64>() / others.len().max(1) as f64;
    let own = |(token, margin): (&i64, &Option<f64>)| margin.map_or(0.0, |m| square(*token, m));
    tokens.iter().zip(&exact.margins).map(|pair| own(pair).max(together).sqrt()).collect()
}

/// Shows the logits of the wanted rows; with an arithmetic, those of each lane.
///
/// The hidden state is cut to the rows that count before the output matrix, the largest product of
/// all, is applied. Lanes become rows there: row by row, all lanes of each.
struct Rows<'w, F> {
    norm_op: usize,
    logits_op: usize,
    noisy: bool,
    wanted: &'w [Wanted<'w>],
    see: F,
}

impl<'w, F: FnMut(usize, &[Vec<f64>])> Rows<'w, F> {
    fn new(program: &Program, wanted: &'w [Wanted<'w>], noisy: bool, see: F) -> Self {
        let logits_op = program.ops.len() - 1;
        let norm_op = program.before_logits().map_or(logits_op, |v| v.0);
        Rows { norm_op, logits_op, noisy, wanted, see }
    }

    fn of(&self, step: usize) -> impl Iterator<Item = (usize, &'w Wanted<'w>)> + use<'w, F> {
        self.wanted.iter().enumerate().filter(move |(_, w)| w.step == step)
    }
}

impl<T: Real, F: FnMut(usize, &[Vec<f64>])> Taps<T> for Rows<'_, F> {
    fn recorded(&self, op: usize, step: usize) -> bool {
        self.noisy && op == self.norm_op && self.of(step).next().is_some()
    }

    fn visit(&mut self, computed: Computed<T>) -> Result<Option<Tensor<T>>, firstdiff_reference::Error> {
        let value = computed.exact;
        let step = computed.step;
        if computed.op == self.norm_op {
            let mut rows: Vec<usize> = self.of(step).map(|(_, w)| w.row).collect();
            if rows.is_empty() {
                rows.push(value.rows() - 1);
            }
            let lanes = computed.noise.map(|n| n.lanes).unwrap_or_default();
            let values: Vec<&Tensor<T>> = if lanes.is_empty() { vec![value] } else { lanes.iter().collect() };
            let data: Vec<T> = rows
                .iter()
                .flat_map(|&r| values.iter().flat_map(move |t| t.row(r).iter().copied()))
                .collect();
            return Ok(Tensor::new([data.len() / value.row_len().max(1), value.row_len()], data).ok());
        }
        let count = self.of(step).count();
        if computed.op == self.logits_op && count > 0 {
            let each = value.rows() / count;
            for (nth, (at, wanted)) in self.of(step).enumerate() {
                let row = |r: usize| {
                    let mut row: Vec<f64> = value.row(r).iter().map(|x| x.to_f64()).collect();
                    (wanted.adjust)(&mut row);
                    row
                };
                let rows: Vec<Vec<f64>> = (nth * each..(nth + 1) * each).map(row).collect();
                (self.see)(at, &rows);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_best_are_sorted_and_the_first_of_equals_comes_first() {
        let row: Vec<f64> = (0..50).map(|i| f64::from((i * 7) % 25)).collect();
        let top = top10(&row);
        assert_eq!(top.len(), 10);
        assert!(
            top.windows(2).all(|w| w[0].logit > w[1].logit || w[0].logit == w[1].logit && w[0].id < w[1].id)
        );
        assert_eq!(top[0].logit, 24.0);
        assert_eq!(top10(&[f64::NAN, 1.0]).len(), 1);
    }
}
