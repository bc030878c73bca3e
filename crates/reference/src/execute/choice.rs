//! Operations whose values are choices: numbers of experts, of entries, of keys.
//!
//! A choice does not round. What rounding did to the scores may still turn it over, where two of
//! them are close: [`Choice`] says how close, in standard deviations of what reached them.

use std::sync::Arc;

use firstdiff_model::{Op, OpKind};
use firstdiff_tensor::{Real, Tensor};
use rayon::prelude::*;

use super::noise::Spread;
use super::{Executor, Inputs, Values, compressed, exact};
use crate::error::Error;
use crate::keys::KeyLabel;

/// What a choice was made from.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The score of each candidate, `[T, n]`; the largest are chosen. Negative infinity: no candidate.
    scores: Tensor<f64>,
    /// The same in every execution with random rounding.
    lanes: Vec<Tensor<f64>>,
}

/// Deviations within which a margin decides nothing: as for tokens, all but about one in 10^6 for a normal
/// distribution, with room for the deviation being estimated from a handful of executions.
pub const TIE: f64 = 5.0;

/// Candidates next in rank from which a deviation is taken too: lanes are few, and what lies at the same
/// size errs alike.
const NEIGHBOURS: usize = 4;

impl Choice {
    /// Candidates there are.
    pub fn candidates(&self) -> usize {
        self.scores.row_len()
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.scores.rows()
    }

    /// The score of a candidate; negative infinity where there is no such.
    pub fn score(&self, row: usize, candidate: usize) -> f64 {
        if candidate < self.candidates() { self.scores.row(row)[candidate] } else { f64::NEG_INFINITY }
    }

    /// Whether any execution has this value here.
    pub fn occurs(&self, row: usize, candidate: usize, value: f64) -> bool {
        let holds = |t: &Tensor<f64>| row < t.rows() && t.row(row).get(candidate) == Some(&value);
        holds(&self.scores) || self.lanes.iter().any(holds)
    }

    /// How far candidate `a` is preferred to `b`, in standard deviations of what rounding does to that: 0
    /// or less where `b` is as good, infinite where one of them is no candidate.
    pub fn preference(&self, row: usize, a: usize, b: usize) -> f64 {
        let gap = self.score(row, a) - self.score(row, b);
        if gap <= 0.0 {
            return gap;
        }
        if !gap.is_finite() {
            return f64::INFINITY;
        }
        let variance = self.variance(row, a) + self.variance(row, b);
        if variance > 0.0 { gap / variance.sqrt() } else { f64::INFINITY }
    }

    /// Mean squared deviation of a candidate and of those next to it in rank: the larger of its own and
    /// theirs.
    fn variance(&self, row: usize, candidate: usize) -> f64 {
        let scores = self.scores.row(row);
        let own = scores[candidate];
        let square = |i: usize| {
            let errors = self.lanes.iter().map(|l| (l.row(row)[i] - scores[i]).powi(2));
            errors.filter(|e| e.is_finite()).sum::<f64>() / self.lanes.len().max(1) as f64
        };
        let mut near: Vec<(f64, usize)> = (0..scores.len())
            .filter(|&i| scores[i].is_finite())
            .map(|i| ((scores[i] - own).abs(), i))
            .collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near.truncate(2 * NEIGHBOURS + 1);
        let together = near.iter().map(|&(_, i)| square(i)).sum::<f64>() / near.len().max(1) as f64;
        square(candidate).max(together)
    }

    /// The candidates between which rounding decides in a row, where it does: those of the best `k` that are hardly
    /// preferred to the next one, and those to whom the last of the best is hardly preferred.
    fn open(&self, row: usize, k: usize) -> Option<Open> {
        let order = ranked(self.scores.row(row), self.candidates());
        let (last, next) = (*order.get(k.checked_sub(1)?)?, *order.get(k)?);
        if self.preference(row, last, next) > TIE {
            return None;
        }
        let (own, others) = order.split_at(k);
        let firm = own.iter().take_while(|&&a| self.preference(row, a, next) > TIE).count();
        let near = others.iter().take_while(|&&b| self.preference(row, last, b) <= TIE).count();
        Some(Open {
            certain: own[..firm].to_vec(),
            competing: order[firm..k + near].to_vec(),
            own: own.to_vec(),
        })
    }

    /// How near the choice of the best `k` is to another one, in deviations: how far the last of them is
    /// preferred to the first of the others. Infinite where there are no others.
    pub fn margin(&self, row: usize, k: usize) -> f64 {
        let order = ranked(self.scores.row(row), k + 1);
        match (k.checked_sub(1).and_then(|last| order.get(last)), order.get(k)) {
            (Some(&last), Some(&next)) => self.preference(row, last, next),
            _ => f64::INFINITY,
        }
    }
}

/// The numbers of the `count` best scores, best first, of equal ones the first. What is negative
/// infinity or no number is not chosen.
fn ranked<T: Real>(scores: &[T], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] > T::NEG_INFINITY).collect();
    let better = |&a: &usize, &b: &usize| scores[b].to_f64().total_cmp(&scores[a].to_f64()).then(a.cmp(&b));
    if count < order.len() {
        order.select_nth_unstable_by(count, better);
        order.truncate(count);
    }
    order.sort_by(better);
    order
}

/// The best `k` of every row, as numbers.
fn best<T: Real>(scores: &Tensor<T>, k: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(scores.rows() * k);
    for row in 0..scores.rows() {
        numbers(&mut out, ranked(scores.row(row), k), k);
    }
    out
}

/// Appends one row of what was chosen, filled up with -1.
fn numbers<T: Real>(out: &mut Vec<T>, chosen: Vec<usize>, k: usize) {
    let more = k.saturating_sub(chosen.len());
    out.extend(chosen.into_iter().map(|i| T::from_f64(i as f64)));
    out.extend(std::iter::repeat_n(T::from_f64(-1.0), more));
}

/// A row in which rounding decides: who is chosen in any case, and who competes for the places that are left, all by
/// the exact scores.
struct Open {
    certain: Vec<usize>,
    competing: Vec<usize>,
    /// The model's own choice.
    own: Vec<usize>,
}

impl Open {
    /// What lane `number` chooses: the even ones what the model does, the odd ones something else that is as good.
    fn choice(&self, number: usize) -> Vec<usize> {
        let places = self.own.len() - self.certain.len();
        let others = self.competing.len();
        if number.is_multiple_of(2) || others <= places {
            return self.own.clone();
        }
        // In turn every window of the ranking but the model's own.
        let start = 1 + number / 2 % (others - 1);
        let windowed = (start..start + places).map(|i| self.competing[i % others]);
        self.certain.iter().copied().chain(windowed).collect()
    }
}

/// A choice: the exact one, what it was made from, and each lane's own.
pub(super) struct Chosen<T> {
    pub exact: Tensor<T>,
    pub choice: Option<Choice>,
    pub lanes: Vec<Arc<Tensor<T>>>,
}

impl Executor<'_> {
    /// The choices of an operation, step by step: never rounded.
    pub(super) fn choose<T: Real>(&self, op: &Op, inputs: &[Inputs<T>]) -> Result<Values<T>, Error> {
        let (mut values, mut spreads) = (Vec::with_capacity(inputs.len()), Vec::with_capacity(inputs.len()));
        for input in inputs {
            let Chosen { exact, choice, lanes } = self.chosen(op, input)?;
            let edit = |(lane, t): (usize, Arc<Tensor<T>>)| input.edited(Some(lane), &t).map_or(t, Arc::new);
            let lanes = lanes.into_iter().enumerate().map(edit).collect();
            values.push(input.edited(None, &exact).unwrap_or(exact));
            spreads.push(Spread { noise: None, lanes, choice });
        }
        Ok((values, spreads))
    }

    /// What is chosen in one step.
    pub(super) fn chosen<T: Real>(&self, op: &Op, input: &Inputs<T>) -> Result<Chosen<T>, Error> {
        match &op.kind {
            OpKind::TopK(top) => {
                let bias = top.bias.as_ref().map(|b| self.weights.vector::<T>(b)).transpose()?;
                Ok(self.best_of(op, top.k, input, &|scores| {
                    let mut scores = scores.clone();
                    if let Some(bias) = &bias {
                        for row in scores.data_mut().chunks_mut(bias.len().max(1)) {
                            row.iter_mut().zip(bias).for_each(|(s, &b)| *s += b);
                        }
                    }
                    scores
                }))
            }
            OpKind::IndexTopK(top) => {
                let (entries, _) = input.keys.entries(top.ratio);
                let labels: Vec<KeyLabel> = input.step.labels().collect();
                Ok(self.best_of(op, top.k, input, &|scores| {
                    // Entries that are not complete yet are no candidates.
                    let mut scores = scores.clone();
                    let (width, first) = (scores.row_len(), labels.len().saturating_sub(scores.rows()));
                    for (i, s) in scores.data_mut().iter_mut().enumerate() {
                        let seen = labels.get(first + i / width.max(1)).zip(entries.get(i % width.max(1)));
                        if !seen.is_some_and(|(row, entry)| entry.is_seen_by(row, top.ratio)) {
                            *s = T::NEG_INFINITY;
                        }
                    }
                    scores
                }))
            }
            OpKind::TableChoice(table) => {
                let rows = input.step.token_ids.iter().map(|&t| t as usize);
                let numbers = self.weights.whole_numbers(&table.table, rows)?;
                let exact = exact::shaped(op, input.step.token_ids.len(), 0, numbers);
                Ok(Chosen { exact, choice: None, lanes: vec![] })
            }
            OpKind::VisibleKeys(seen) => {
                let lanes = input.values.iter().map(|v| v.lanes.len()).max().unwrap_or(0);
                // Only the choice of entries matters, and it differs between lanes where rounding decides it.
                let lanes = if input.values.len() > 1 && self.arithmetic.is_some() { lanes } else { 0 };
                let of = |lane| compressed::visible(seen, &input.tensors(lane), input);
                Ok(Chosen {
                    exact: of(None),
                    choice: None,
                    lanes: (0..lanes).map(|l| Arc::new(of(Some(l)))).collect(),
                })
            }
            other => unreachable!("{} is no choice", other.name()),
        }
    }

    /// The best `k` of the candidates. An engine whose choice is not known may have made another one
    /// wherever rounding decides: half of the lanes do, whatever their own rounding made of the scores.
    fn best_of<T: Real>(
        &self,
        op: &Op,
        k: usize,
        input: &Inputs<T>,
        candidates: &(dyn Fn(&Tensor<T>) -> Tensor<T> + Sync),
    ) -> Chosen<T> {
        let flight = &input.values[0];
        let scores = candidates(&flight.exact);
        let rows = scores.rows();
        let exact = exact::shaped(op, rows, 0, best(&scores, k));
        if self.arithmetic.is_none() {
            return Chosen { exact, choice: None, lanes: vec![] };
        }
        let lanes: Vec<Tensor<T>> = flight.lanes.par_iter().map(|lane| candidates(lane)).collect();
        let choice =
            Choice { scores: scores.cast(), lanes: lanes.iter().skip(1).map(Tensor::cast).collect() };
        let open: Vec<Option<Open>> = (0..rows).map(|row| choice.open(row, k)).collect();
        let lane = |number: usize| {
            let scores = lanes.get(number).unwrap_or(&scores);
            let mut chosen = Vec::with_capacity(rows * k);
            for (row, open) in open.iter().enumerate() {
                let of = open.as_ref().map_or_else(|| ranked(scores.row(row), k), |open| open.choice(number));
                numbers(&mut chosen, of, k);
            }
            Arc::new(exact::shaped(op, rows, 0, chosen))
        };
        let lanes = (0..self.lanes).map(lane).collect();
        Chosen { exact, choice: Some(choice), lanes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(scores: &[f64], lanes: &[&[f64]]) -> Choice {
        let row = |x: &[f64]| Tensor::new([1, x.len()], x.to_vec()).unwrap();
        Choice { scores: row(scores), lanes: lanes.iter().map(|l| row(l)).collect() }
    }

    #[test]
    fn the_best_come_first_and_of_equal_ones_the_first() {
        assert_eq!(ranked(&[1.0, 3.0, 2.0, 3.0], 3), [1, 3, 2]);
        assert_eq!(ranked(&[f64::NEG_INFINITY, f64::NAN, 0.0], 3), [2], "neither is a candidate");
        let scores =
            Tensor::new([2, 3], vec![0.1, 0.3, 0.2, f64::NEG_INFINITY, 5.0, f64::NEG_INFINITY]).unwrap();
        assert_eq!(best(&scores, 2), [1.0, 2.0, 1.0, -1.0]);
    }

    #[test]
    fn where_rounding_decides_odd_lanes_choose_otherwise_and_even_ones_as_the_model_does() {
        // Candidates 1, 2 and 3 lie within rounding of each other, 0 is above and 4 below.
        let scores = [9.0, 1.02, 1.01, 1.0, -9.0];
        let c = choice(&scores, &[&[9.0, 1.12, 0.91, 1.1, -9.0], &[9.1, 0.92, 1.11, 0.9, -9.1]]);
        let open = c.open(0, 2).unwrap();
        assert_eq!((open.certain.as_slice(), open.competing.as_slice()), (&[0][..], &[1, 2, 3][..]));
        assert_eq!(open.choice(2), [0, 1]);
        let others: Vec<Vec<usize>> = [1, 3, 5, 7].iter().map(|&n| open.choice(n)).collect();
        assert!(others.iter().all(|o| o[0] == 0 && o[1] != 1), "{others:?}");
        assert!(others.iter().any(|o| o[1] == 2) && others.iter().any(|o| o[1] == 3), "{others:?}");
        assert!(c.open(0, 1).is_none(), "the first stands alone");
        assert!(c.open(0, 5).is_none(), "all are chosen");
    }

    #[test]
    fn margins_are_in_units_of_what_reached_the_scores() {
        let c = choice(&[1.0, 0.9, 0.1], &[&[1.1, 0.9, 0.1], &[0.9, 0.9, 0.1]]);
        // Each candidate's deviation is that of all three together at least: sqrt(0.01 / 3).
        let expected = 0.1 / (0.01f64 + 0.01 / 3.0).sqrt();
        assert!((c.preference(0, 0, 1) - expected).abs() < 1e-12);
        assert!((c.margin(0, 1) - expected).abs() < 1e-12);
        assert!(c.preference(0, 1, 0) < 0.0);
        assert_eq!(c.margin(0, 3), f64::INFINITY, "all are chosen");
        assert_eq!(choice(&[1.0, 0.9], &[]).margin(0, 1), f64::INFINITY, "scores known exactly");
        assert_eq!(choice(&[1.0, 1.0], &[]).margin(0, 1), 0.0, "a tie is one however exact");
    }
}
