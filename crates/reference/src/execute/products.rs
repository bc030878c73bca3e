//! The variance of matrix products' sums, whose roundings are independent element by element.

use firstdiff_model::ops::{GroupedLinear, Linear};
use firstdiff_tensor::{Real, Tensor};
use rayon::prelude::*;

use super::{Executor, Inputs};
use crate::arithmetic::{Arithmetic, InputRounding};
use crate::error::Error;
use crate::kernels::input::{input_variance, weight_variance};
use crate::kernels::sum_variance;

/// How the sums of one product round: `sum of (input variance + u^2/3 (K/2 + 1) x^2) w^2`, plus what depends on
/// the sum itself.
struct Sums<'a> {
    arithmetic: &'a Arithmetic,
    /// Numbers added up.
    terms: usize,
    /// What the factors are rounded to first.
    rounding: InputRounding,
}

impl<'a> Sums<'a> {
    fn new(
        executor: &Executor,
        arithmetic: &'a Arithmetic,
        weight: &str,
        terms: usize,
    ) -> Result<Self, Error> {
        let rounding = arithmetic.input_rounding(executor.weights.storage(weight)?);
        Ok(Sums { arithmetic, terms, rounding })
    }

    /// What comes from the products, of all sums over the rows of `inputs`; `product` multiplies rows by the
    /// weight, each of its elements mapped.
    fn of_products<T: Real>(
        &self,
        inputs: &[&[T]],
        product: impl Fn(&[f32], fn(f32) -> f32) -> Result<Vec<f32>, Error>,
    ) -> Result<Vec<f32>, Error> {
        let factor = sum_variance(self.arithmetic.sums(), self.terms, 1.0, 0.0) + self.split(1.0, 0.0);
        // In f32: a variance good to seven digits is good enough.
        let mut squares: Vec<f32> = Vec::new();
        for x in inputs {
            let rounded = input_variance(x, self.terms, self.rounding);
            squares.extend(x.iter().zip(rounded).map(|(x, v)| {
                let x = x.to_f64();
                (v + factor * x * x) as f32
            }));
        }
        let mut variance = product(&squares, |w| w * w)?;
        if let Some(format) = self.arithmetic.second_factor() {
            let x = inputs.iter().flat_map(|x| x.iter());
            let squares: Vec<f32> = x.map(|x| x.to_f32() * x.to_f32()).collect();
            let weights = product(&squares, weight_variance(format))?;
            variance.iter_mut().zip(weights).for_each(|(v, w)| *v += w);
        }
        Ok(variance)
    }

    /// What depends on the sum itself.
    fn of_sum(&self, sum: f64) -> f64 {
        sum_variance(self.arithmetic.sums(), self.terms, 0.0, sum) + self.split(0.0, sum)
    }

    /// Parts of a sum that is cut are rounded and added up like a short sum.
    fn split(&self, products: f64, sum: f64) -> f64 {
        match self.arithmetic.split_sums {
            0 | 1 => 0.0,
            parts => sum_variance(self.arithmetic.store, parts, products, sum),
        }
    }
}

/// Variance of a matrix product's sums, step by step.
pub(super) fn linear<T: Real>(
    executor: &Executor,
    a: &Arithmetic,
    op: &Linear,
    inputs: &[Inputs<T>],
    exact: &[Tensor<T>],
) -> Result<Vec<Option<Vec<f64>>>, Error> {
    let sums = Sums::new(executor, a, &op.weight, op.input)?;
    let rows: Vec<&[T]> = inputs.iter().map(|i| i.values[0].exact.data()).collect();
    let product = |x: &[f32], map: fn(f32) -> f32| executor.weights.product(&op.weight, x, Some(map));
    let mut rest = sums.of_products(&rows, product)?;
    let bias = op.bias.as_ref().map(|b| executor.weights.vector::<f64>(b)).transpose()?;
    let mut out = Vec::with_capacity(inputs.len());
    for y in exact {
        let tail = rest.split_off(y.len());
        let variance = rest.par_iter().zip(y.data()).enumerate().with_min_len(1024).map(|(i, (&v, y))| {
            let sum = y.to_f64() - bias.as_ref().map_or(0.0, |b| b[i % op.output]);
            // A bias added afterwards means one rounding more.
            let before_bias = if bias.is_some() { a.store.rounding_variance(sum) } else { 0.0 };
            f64::from(v) + sums.of_sum(sum) + before_bias
        });
        out.push(Some(variance.collect()));
        rest = tail;
    }
    Ok(out)
}

/// The same of a product of groups.
pub(super) fn grouped<T: Real>(
    executor: &Executor,
    a: &Arithmetic,
    op: &GroupedLinear,
    inputs: &[Inputs<T>],
    exact: &[Tensor<T>],
) -> Result<Vec<Option<Vec<f64>>>, Error> {
    let sums = Sums::new(executor, a, &op.weight, op.input)?;
    let product = |x: &[f32], map: fn(f32) -> f32| {
        executor.weights.grouped_product(&op.weight, x, op.groups, Some(map))
    };
    let step = |(input, y): (&Inputs<T>, &Tensor<T>)| {
        let variance = sums.of_products(&[input.values[0].exact.data()], product)?;
        let variance = variance.iter().zip(y.data()).map(|(&v, y)| f64::from(v) + sums.of_sum(y.to_f64()));
        Ok(Some(variance.collect()))
    };
    inputs.iter().zip(exact).map(step).collect()
}
