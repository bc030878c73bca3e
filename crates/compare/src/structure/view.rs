//! A wrong value, seen along one axis at a time.

use firstdiff_model::Axis;
use firstdiff_tensor::Tensor;

use crate::place;

/// A recorded value beside the exact one.
pub(super) struct View<'a> {
    pub recorded: &'a [f64],
    pub exact: &'a [f64],
    pub variance: &'a [f64],
    pub axes: &'a [Axis],
    shape: &'a [usize],
}

/// One axis: `outer x extent x inner` elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Along {
    pub axis: Axis,
    pub extent: usize,
    outer: usize,
    inner: usize,
}

impl Along {
    /// The elements with index `index` along the axis; the same order for every index.
    pub fn elements(self, index: usize) -> impl Iterator<Item = usize> {
        let Along { extent, outer, inner, .. } = self;
        (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * extent + index) * inner + i))
    }

    /// Elements of one index.
    pub fn len(self) -> usize {
        self.outer * self.inner
    }

    /// What one index is called.
    pub fn noun(self) -> &'static str {
        place::noun(self.axis)
    }
}

impl<'a> View<'a> {
    pub fn new(
        recorded: &'a Tensor<f64>,
        exact: &'a Tensor<f64>,
        variance: &'a [f64],
        axes: &'a [Axis],
    ) -> View<'a> {
        View { recorded: recorded.data(), exact: exact.data(), variance, axes, shape: recorded.shape() }
    }

    /// Every axis with more than one index.
    pub fn along(&self) -> impl Iterator<Item = Along> + '_ {
        self.axes.iter().zip(self.shape).enumerate().filter(|(_, (_, n))| **n > 1).map(
            |(i, (&axis, &extent))| Along {
                axis,
                extent,
                outer: self.shape[..i].iter().product(),
                inner: self.shape[i + 1..].iter().product(),
            },
        )
    }

    /// The whole value as one group.
    pub fn whole(&self) -> Along {
        Along { axis: Axis::Tokens, extent: 1, outer: 1, inner: self.recorded.len() }
    }

    /// The recorded value is finite here, and so is its error.
    pub fn counts(&self, i: usize) -> bool {
        self.recorded[i].is_finite() && self.exact[i].is_finite()
    }

    /// Whether a model of the recorded value explains most of the error of some elements: what it leaves beyond
    /// rounding is at most half of what is there beyond rounding, as a norm. A model of `fitted` numbers takes its
    /// share of any error, structured or not: what it leaves is spread over the numbers that were not fitted. So a
    /// rotation, which fits an angle to each pair, must do better than leave half of the squared error.
    pub fn explains(
        &self,
        elements: impl Iterator<Item = usize>,
        model: impl Fn(usize) -> f64,
        fitted: usize,
    ) -> bool {
        let (mut error, mut left, mut rounding, mut count) = (0.0, 0.0, 0.0, 0usize);
        for i in elements.filter(|&i| self.counts(i)) {
            error += (self.recorded[i] - self.exact[i]).powi(2);
            left += (self.recorded[i] - model(i)).powi(2);
            rounding += self.variance[i];
            count += 1;
        }
        let Some(free) = count.checked_sub(fitted).filter(|&free| free > 0) else { return false };
        let left = left * count as f64 / free as f64;
        // A quarter of the square.
        error > rounding && left - rounding <= 0.25 * (error - rounding)
    }

    /// What a model of the recorded value leaves over some elements, in noise floors. Where the value
    /// should not round at all, one part in 10^12 of it is let pass: models compute in f64.
    pub fn remainder(&self, elements: impl Iterator<Item = usize>, model: impl Fn(usize) -> f64) -> f64 {
        let (mut error, mut variance) = (0.0, 0.0);
        for i in elements.filter(|&i| self.counts(i)) {
            let e = self.recorded[i] - model(i);
            error += e * e;
            variance += self.variance[i] + 1e-24 * self.exact[i] * self.exact[i];
        }
        if error == 0.0 { 0.0 } else { (error / variance).sqrt() }
    }
}
