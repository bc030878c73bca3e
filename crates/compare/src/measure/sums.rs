//! One pass over a value: the sums that everything else is computed from.

use std::collections::HashSet;

use firstdiff_model::Axis;
use firstdiff_reference::{Noise, Repeats};
use firstdiff_tensor::Tensor;
use rayon::prelude::*;

use super::group::{Group, Reason, mean_square};
use super::{MAX_RATIO, THRESHOLDS};

/// A recorded value beside the exact one, seen as rows of its last axis.
pub(super) struct Value<'a> {
    recorded: &'a [f64],
    exact: &'a [f64],
    noise: &'a Noise<f64>,
    axes: &'a [Axis],
    shape: &'a [usize],
    width: usize,
    rows: usize,
    /// Rows that repeat an earlier one round alike: they count once where errors are added up.
    fresh: Vec<bool>,
    /// The weight of each element when a common factor is fitted.
    directions: Vec<f64>,
}

/// The sums over everything and over the parts along each axis.
pub(super) struct Sums {
    pub whole: Group,
    pub parts: Vec<(Axis, Vec<Group>)>,
}

impl<'a> Value<'a> {
    pub fn new(
        recorded: &'a Tensor<f64>,
        exact: &'a Tensor<f64>,
        noise: &'a Noise<f64>,
        axes: &'a [Axis],
    ) -> Value<'a> {
        let shape = recorded.shape();
        let width = shape.last().copied().unwrap_or(1).max(1);
        let rows = recorded.len() / width;
        let mut seen = HashSet::with_capacity(rows);
        let hashes: Vec<u64> = exact.data().par_chunks(width).with_min_len(16).map(hash).collect();
        // A collision only leaves one row out of a fit.
        let fresh = hashes.into_iter().map(|h| seen.insert(h)).collect();
        let direction = |(i, &y): (usize, &f64)| noise.direction(i, y);
        let directions = exact.data().par_iter().enumerate().with_min_len(1024).map(direction).collect();
        Value {
            recorded: recorded.data(),
            exact: exact.data(),
            noise,
            axes,
            shape,
            width,
            rows,
            fresh,
            directions,
        }
    }

    /// The index along axis `axis` (not the last) of row `row`.
    fn index(&self, axis: usize, row: usize) -> usize {
        let inner: usize = self.shape[axis + 1..self.shape.len() - 1].iter().product();
        row / inner.max(1) % self.shape[axis]
    }

    pub fn sums(&self) -> Sums {
        // A fixed number of elements: results do not depend on the number of threads.
        let band = (1 << 14) / self.width + 1;
        let rows: Vec<Group> =
            (0..self.rows).into_par_iter().with_min_len(band).map(|r| self.row(r)).collect();
        let mut whole = Group::default();
        let last = self.shape.len().saturating_sub(1);
        let mut parts: Vec<(Axis, Vec<Group>)> =
            (0..last).map(|axis| (self.axes[axis], vec![Group::default(); self.shape[axis]])).collect();
        for (row, group) in rows.iter().enumerate() {
            for (axis, (_, groups)) in parts.iter_mut().enumerate() {
                groups[self.index(axis, row)].merge(group);
            }
            whole.merge(group);
        }
        if last > 0 && self.rows >= THRESHOLDS.min_part {
            parts.push((self.axes[last], self.columns()));
        }
        Sums { whole, parts }
    }

    /// The sums over one row.
    fn row(&self, row: usize) -> Group {
        let range = row * self.width..(row + 1) * self.width;
        let (recorded, exact) = (&self.recorded[range.clone()], &self.exact[range.clone()]);
        let variance = &self.noise.variance[range.clone()];
        let mut g = Group { elements: recorded.len(), ..Group::default() };
        let mut along = 0.0;
        let directions = &self.directions[range.clone()];
        for (((&x, &y), &v), &d) in recorded.iter().zip(exact).zip(variance).zip(directions) {
            if !x.is_finite() {
                // Also the scores of masked keys, where an engine may write -inf: no score is judged there.
                g.non_finite += usize::from(y.is_finite());
                g.elements -= 1;
                continue;
            }
            let e = x - y;
            g.error += e * e;
            g.variance += v;
            g.exact += y * y;
            g.recorded += x * x;
            g.dot += x * y;
            g.along.sum += e * d;
            g.along.unit += y * d;
            along += v * d * d;
            g.max_abs = g.max_abs.max(e.abs());
            // Errors that are no more than the reference's own rounding have no direction.
            if e.abs() > 1e-3 * v.sqrt() {
                g.erring[0] += 1;
                g.erring[1] += usize::from(e * y < 0.0);
            }
        }
        if !self.fresh[row] {
            (g.along.sum, g.along.unit) = (0.0, 0.0);
            return g;
        }
        g.along.variance = along;
        g.along.shared = self.shared(row);
        let lane = |lane: &Tensor<f64>| -> f64 {
            let values = lane.data()[range.clone()].iter().zip(exact).zip(recorded).zip(directions);
            values.map(|(((&z, &y), &x), &d)| if x.is_finite() { (z - y) * d } else { 0.0 }).sum()
        };
        g.along.lanes = self.noise.lanes.iter().map(lane).collect();
        g
    }

    /// What moves a row's elements together, as the variance of their sum along their directions.
    fn shared(&self, row: usize) -> f64 {
        let of = |sums: &[f64]| sums.get(row).copied().unwrap_or(0.0);
        of(&self.noise.along) + of(&self.noise.factor)
    }

    /// The sums over each channel (or key: each index of the last axis).
    fn columns(&self) -> Vec<Group> {
        const BLOCK: usize = 256;
        // Inputs that are quantised together, and factors of a channel, may err alike from row to row:
        // such errors do not add up like independent ones, and only their size is judged.
        let add_up =
            self.noise.along.is_empty() && matches!(self.noise.repeats, Repeats::Values | Repeats::Digits);
        let blocks = (0..self.width.div_ceil(BLOCK)).into_par_iter().map(|block| {
            let columns = block * BLOCK..((block + 1) * BLOCK).min(self.width);
            let mut groups = vec![Group::default(); columns.len()];
            for row in 0..self.rows {
                let first = row * self.width;
                let add_up = add_up && self.fresh[row];
                for (g, i) in groups.iter_mut().zip(first + columns.start..) {
                    let (x, y, v) = (self.recorded[i], self.exact[i], self.noise.variance[i]);
                    if !x.is_finite() {
                        g.non_finite += usize::from(y.is_finite());
                        continue;
                    }
                    let e = x - y;
                    g.elements += 1;
                    g.error += e * e;
                    g.variance += v;
                    if add_up {
                        let d = self.directions[i];
                        g.along.sum += e * d;
                        g.along.variance += v * d * d;
                        g.offset.sum += e;
                        g.offset.variance += v;
                    }
                }
                if add_up && !self.noise.lanes.is_empty() {
                    self.column_lanes(&mut groups, first + columns.start);
                }
            }
            groups
        });
        blocks.flatten_iter().collect()
    }

    fn column_lanes(&self, groups: &mut [Group], first: usize) {
        let lanes = &self.noise.lanes;
        for (g, i) in groups.iter_mut().zip(first..) {
            let y = self.exact[i];
            g.along.lanes.resize(lanes.len(), 0.0);
            g.offset.lanes.resize(lanes.len(), 0.0);
            for (l, lane) in lanes.iter().enumerate() {
                let e = lane.data()[i] - y;
                g.along.lanes[l] += e * self.directions[i];
                g.offset.lanes[l] += e;
            }
        }
    }

    /// Whether the variance is estimated from a few executions: lanes that round at random, all but the first.
    pub fn in_lanes(&self) -> bool {
        self.noise.lanes.len() > 1
    }

    /// A functional in standard deviations, when elements that may err alike are taken to do so, and
    /// what rounding to nearest does to this very sum is allowed: a weight with few digits rounds all its
    /// products to one side.
    /// `part` is an axis and an index along it, or everything.
    pub fn clustered(&self, part: Option<(Axis, usize)>, reason: Reason) -> f64 {
        let last = self.shape.len().saturating_sub(1);
        let place = part.and_then(|(axis, index)| Some((self.axes.iter().position(|a| *a == axis)?, index)));
        let lanes = self.noise.lanes.len();
        // The digits of a number in the store's format, without sign and exponent.
        let dropped = 53 - self.noise.store.significand_bits();
        let digits = |x: f64| (x.to_bits() & ((1 << 52) - 1)) >> dropped;
        let key = |x: f64, row: usize, channel: usize| match self.noise.repeats {
            Repeats::Values => (0, x.to_bits()),
            Repeats::Channels => (channel, digits(x)),
            // Rows are tokens first, then heads.
            Repeats::Heads => (channel, self.index(0, row) as u64),
            Repeats::Digits => (0, digits(x)),
        };
        let (mut sum, mut shared, mut together) = (0.0, 0.0, vec![0.0; lanes]);
        // What the same sum is for an engine that rounds once, and for one that rounds inner values too.
        let (mut once, mut within) = (0.0, 0.0);
        let store = self.noise.store;
        let most = if place.is_none() { self.recorded.len() } else { 0 };
        let mut deviations: Vec<((usize, u64), f64)> = Vec::with_capacity(most);
        for row in (0..self.rows).filter(|&r| self.fresh[r]) {
            let columns = match place {
                Some((axis, index)) if axis == last => index..index + 1,
                Some((axis, index)) if self.index(axis, row) != index => continue,
                _ => 0..self.width,
            };
            shared += self.shared(row);
            for c in columns {
                let i = row * self.width + c;
                let (x, y, v) = (self.recorded[i], self.exact[i], self.noise.variance[i]);
                if !x.is_finite() {
                    continue;
                }
                let g = if reason == Reason::Scale { self.noise.direction(i, y) } else { 1.0 };
                sum += (x - y) * g;
                once += (store.round(y) - y) * g;
                if let Some(nearest) = self.noise.lanes.first() {
                    within += (store.round(nearest.data()[i]) - y) * g;
                }
                deviations.push((key(x, row, c), g.abs() * v.sqrt()));
                for (sum, lane) in together.iter_mut().zip(&self.noise.lanes) {
                    *sum += (lane.data()[i] - y) * g;
                }
            }
        }
        // Sorted, which takes less time and memory than a map of millions; and completely: sums depend on the order.
        deviations.par_sort_unstable_by_key(|(key, deviation)| (*key, deviation.to_bits()));
        let clusters = deviations.chunk_by(|a, b| a.0 == b.0);
        let mut own: Vec<f64> = clusters.map(|c| c.iter().map(|d| d.1).sum::<f64>().powi(2)).collect();
        own.sort_by(f64::total_cmp);
        let rounding = once * once + within * within;
        let variance = own.iter().sum::<f64>() + shared + mean_square(&together) + rounding;
        if sum == 0.0 { 0.0 } else { (sum.abs() / variance.sqrt()).min(MAX_RATIO) }
    }
}

fn hash(row: &[f64]) -> u64 {
    row.iter().fold(0, |h: u64, x| (h.rotate_left(5) ^ x.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
