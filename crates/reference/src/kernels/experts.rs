//! A mixture of experts: only the chosen ones are read, one after another.

use firstdiff_model::ops::{Expert, Experts, GatedAct, Slice};
use firstdiff_tensor::{Real, Tensor};

use super::{Rounding, gated_act, sum_variance};
use crate::arithmetic::Arithmetic;
use crate::error::Error;
use crate::kernels::input::{input_variance, weight_variance};
use crate::random::Random;
use crate::weights::Weights;

/// One execution of the operation over one step: exact, or a lane.
pub(crate) struct Run<'a, T> {
    /// Hidden states `[T, d]`.
    pub x: &'a Tensor<T>,
    /// Numbers of the experts chosen, `[T, k]`.
    pub choice: &'a Tensor<T>,
    /// What each counts, `[T, k]`.
    pub weights: &'a Tensor<T>,
    /// The lane's arithmetic, random numbers and number; `None`: exact.
    pub lane: Option<(&'a Arithmetic, Random, usize)>,
    /// Operation, for [`Rounding::lane`].
    pub turn: usize,
}

impl<T: Real> Run<'_, T> {
    /// Rows that all three inputs have, counted from the end.
    fn rows(&self) -> usize {
        self.x.rows().min(self.choice.rows()).min(self.weights.rows())
    }

    fn rounding(&self) -> Rounding<'_> {
        match self.lane {
            Some((a, random, number)) => Rounding::lane(a, random, number, self.turn),
            None => Rounding::exact(),
        }
    }

    /// Moves each value as far as rounding it beforehand would, at random.
    fn perturbed(&self, x: &mut [T], variance: &[f64], site: u64, at: impl Fn(usize) -> usize) {
        if let Some((_, random, 1..)) = self.lane {
            let random = random.site(site);
            for (i, (x, v)) in x.iter_mut().zip(variance).enumerate().filter(|(_, (_, v))| **v > 0.0) {
                *x = T::from_f64(x.to_f64() + v.sqrt() * random.normal(at(i)));
            }
        }
    }
}

/// Where an expert is used: a row of a run, and the place among those chosen for it.
struct Use {
    run: usize,
    row: usize,
    place: usize,
}

/// The weighted sums of the chosen experts, `[T, d]`, for each run; before their last rounding.
/// Experts are added in the order of their numbers, each rounded when stored, as
/// transformers' index-add does it; engines that add in a longer format err less.
pub(crate) fn experts<T: Real>(
    op: &Experts,
    runs: &[Run<T>],
    weights: &Weights,
) -> Result<Vec<Tensor<T>>, Error> {
    let mut sums: Vec<Tensor<T>> = runs.iter().map(|r| Tensor::zeros([r.rows(), op.dim])).collect();
    for (expert, uses) in op.experts.iter().zip(uses(runs, op.experts.len())) {
        if uses.is_empty() {
            continue;
        }
        let down = one(op, expert, runs, &uses, weights)?;
        for (used, y) in uses.iter().zip(down.chunks(op.dim)) {
            let run = &runs[used.run];
            let (rounding, k) = (run.rounding(), run.choice.row_len());
            let at = (used.row * k + used.place) * op.dim;
            let weight = super::tail(run.weights, run.rows())[used.row * k + used.place];
            let sum = &mut sums[used.run].data_mut()[used.row * op.dim..][..op.dim];
            for (i, (sum, &y)) in sum.iter_mut().zip(y).enumerate() {
                // What was summed so far was stored; this sum will be, by the next or at the end.
                *sum = rounding.site(20).store(*sum, at + i) + rounding.site(21).store(y * weight, at + i);
            }
        }
    }
    Ok(sums)
}

/// Every use of each of `count` experts.
fn uses<T: Real>(runs: &[Run<T>], count: usize) -> Vec<Vec<Use>> {
    let mut uses: Vec<Vec<Use>> = (0..count).map(|_| Vec::new()).collect();
    for (run, r) in runs.iter().enumerate() {
        let k = r.choice.row_len().max(1);
        for (i, &c) in super::tail(r.choice, r.rows()).iter().enumerate() {
            if let Some(of) = super::number(c).and_then(|c| uses.get_mut(c)) {
                of.push(Use { run, row: i / k, place: i % k });
            }
        }
    }
    uses
}

/// One expert over all its uses, `[uses, d]`, as stored by each run.
fn one<T: Real>(
    op: &Experts,
    expert: &Expert,
    runs: &[Run<T>],
    uses: &[Use],
    weights: &Weights,
) -> Result<Vec<T>, Error> {
    let mut x = Vec::with_capacity(uses.len() * op.dim);
    for used in uses {
        let run = &runs[used.run];
        x.extend_from_slice(&super::tail(run.x, run.rows())[used.row * op.dim..][..op.dim]);
    }
    let mut gate = product(&expert.gate, &x, op.dim, (runs, uses), weights, 1)?;
    let up = product(&expert.up, &x, op.dim, (runs, uses), weights, 4)?;
    let act = GatedAct { activation: op.activation, limit: op.limit };
    for (i, used) in uses.iter().enumerate() {
        let run = &runs[used.run];
        let part = i * op.inner..(i + 1) * op.inner;
        let at = used.row * run.choice.row_len() + used.place;
        let rounding = run.rounding().site(100 + at as u64);
        let mut activated = gated_act(&gate[part.clone()], &up[part.clone()], &act, rounding);
        let at = at * op.inner;
        for (c, y) in activated.iter_mut().enumerate() {
            *y = run.rounding().site(7).store(*y, at + c);
        }
        gate[part].copy_from_slice(&activated);
    }
    product(&expert.down, &gate, op.inner, (runs, uses), weights, DOWN)
}

/// The site of the product that leaves an expert: the one that tensor parallelism adds up over ranks.
const DOWN: u64 = 8;

/// What partial sums that are stored add to a product's variance.
fn split(a: &Arithmetic, site: u64, products: f64, sum: f64) -> f64 {
    let ranks = if site == DOWN { a.tensor_parallel } else { 1 };
    match a.split_sums.max(ranks) {
        0 | 1 => 0.0,
        parts => sum_variance(a.store, parts, products, sum),
    }
}

/// `x W^T` for rows that belong to several runs, each rounding in its own way.
fn product<T: Real>(
    slice: &Slice,
    x: &[T],
    width: usize,
    (runs, uses): (&[Run<T>], &[Use]),
    weights: &Weights,
    site: u64,
) -> Result<Vec<T>, Error> {
    let matrix = weights.matrix(slice)?;
    if runs.iter().all(|r| r.lane.is_none()) {
        return matrix.product(x, None);
    }
    let mut moved = x.to_vec();
    let mut squares = vec![0f32; x.len()];
    let mut second = vec![0f32; x.len()];
    for (i, used) in uses.iter().enumerate() {
        let run = &runs[used.run];
        let Some((a, ..)) = run.lane else { continue };
        let part = i * width..(i + 1) * width;
        let rounded = input_variance(&x[part.clone()], width, a.input_rounding(matrix.storage()));
        // The same input of several experts is rounded once; that of the second product is each expert's own.
        let own = if site == DOWN { used.place } else { 0 };
        let at = |c: usize| (used.row * run.choice.row_len() + own) * width + c;
        run.perturbed(&mut moved[part.clone()], &rounded, if site == DOWN { DOWN } else { 1 }, at);
        let factor = sum_variance(a.sums(), width, 1.0, 0.0) + split(a, site, 1.0, 0.0);
        for ((square, second), x) in
            squares[part.clone()].iter_mut().zip(&mut second[part.clone()]).zip(&x[part])
        {
            let x = x.to_f64() * x.to_f64();
            (*square, *second) = ((factor * x) as f32, x as f32);
        }
    }
    let mut y = matrix.product(&moved, None)?;
    let mut variance = matrix.product(&squares, Some(|w| w * w))?;
    if let Some(format) = runs.iter().find_map(|r| r.lane).and_then(|(a, ..)| a.second_factor()) {
        let more = matrix.product(&second, Some(weight_variance(format)))?;
        variance.iter_mut().zip(more).for_each(|(v, m)| *v += m);
    }
    for (i, used) in uses.iter().enumerate() {
        let run = &runs[used.run];
        let Some((a, random, number)) = run.lane else { continue };
        let (rounding, normal) = (run.rounding().site(site + 1), random.site(site + 2));
        let rows = slice.rows;
        let start = (used.row * run.choice.row_len() + used.place) * rows;
        for (c, (y, v)) in y[i * rows..][..rows].iter_mut().zip(&variance[i * rows..]).enumerate() {
            let sum = y.to_f64();
            let v = f64::from(*v) + sum_variance(a.sums(), width, 0.0, sum) + split(a, site, 0.0, sum);
            let error = if number == 0 { 0.0 } else { v.sqrt() * normal.normal(start + c) };
            *y = rounding.store(T::from_f64(sum + error), start + c);
        }
    }
    Ok(y)
}
