//! One recorded tensor against what an execution gives for it: by one rule, whether a verdict or a cause asks.

use std::borrow::Cow;

use firstdiff_model::ops::Discrete;
use firstdiff_model::{Axis, OpKind, Program};
use firstdiff_reference::{CacheFormat, Choice, Noise, StepInput};
use firstdiff_tensor::{Float, Tensor};

use crate::measure::{Measured, choice};
use crate::reach::Part;

/// What an execution gives for one operation in one step.
pub(crate) struct Expected<'e> {
    /// The exact value.
    pub exact: Cow<'e, Tensor<f64>>,
    /// What rounding may do to it; none for choices.
    pub noise: Option<Noise<f64>>,
    /// What a choice was made from, where scores decide it.
    pub choice: Option<&'e Choice>,
    /// Whether it follows from something that is not finite.
    pub poisoned: bool,
    /// Of a cache: how its newest rows were written, where what was written is recorded too.
    pub copied: Option<Copied>,
    /// The rows of the step.
    pub rows: &'e StepInput,
    /// What of it is compared.
    pub part: &'e Part,
}

/// How the newest rows of a cache came into it. A cache copies: what it rounds, it rounds to nearest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    /// Its format.
    pub format: CacheFormat,
    /// Rows that this step wrote.
    pub rows: usize,
}

/// What comes of comparing the two.
pub(crate) enum Judgement<'e> {
    /// A choice was compared.
    Choice(choice::Compared),
    /// A tensor was compared.
    Tensor(Box<Compared<'e>>),
    /// There was nothing to compare: the recorded tensor, as it was.
    Unjudged(Tensor<f64>),
    /// More was recorded than the operation can give.
    DoesNotFit {
        /// The shape of the recorded tensor.
        found: Vec<usize>,
    },
}

/// A recorded tensor and the exact one, brought to the same axes, and measured.
pub(crate) struct Compared<'e> {
    pub measured: Measured,
    /// As the operation's readers see it: with its heads as an axis of their own.
    pub recorded: Tensor<f64>,
    /// The part that was recorded of the exact value.
    pub exact: Cow<'e, Tensor<f64>>,
    pub noise: Noise<f64>,
    pub axes: Vec<Axis>,
    shape: Vec<usize>,
    /// Where a part was compared: all that was recorded, and all that is exact.
    whole: Option<(Tensor<f64>, Tensor<f64>)>,
}

impl Compared<'_> {
    /// The recorded tensor in the shape of its operation, finite wherever the exact one is: what is not finite
    /// cannot be computed on with.
    pub fn into_finite(mut self) -> Tensor<f64> {
        if let Some((mut recorded, exact)) = self.whole {
            make_finite(&mut recorded, &exact);
            return recorded;
        }
        if self.measured.non_finite > 0 {
            make_finite(&mut self.recorded, &self.exact);
        }
        // The view has the same elements.
        self.recorded.reshape(self.shape).unwrap_or_else(|_| Tensor::zeros([0]))
    }
}

/// Judges what was recorded of operation `op`.
pub(crate) fn judge<'e>(
    program: &Program,
    op: usize,
    mut recorded: Tensor<f64>,
    expected: Expected<'e>,
) -> Judgement<'e> {
    let (kind, axes) = (&program.ops[op].kind, &program.ops[op].axes);
    if *expected.part == Part::Nothing {
        if recorded.shape() == expected.exact.shape() {
            make_finite(&mut recorded, &expected.exact);
        }
        return Judgement::Unjudged(recorded);
    }
    if let Some(discrete) = kind.discrete() {
        let exact = &expected.exact;
        // An engine that drops what no row can see any more holds the last columns of a mask.
        let columns = match discrete {
            Discrete::Set => recorded.row_len() == exact.row_len(),
            Discrete::Labels => recorded.row_len() <= exact.row_len(),
        };
        // Behind a value that is not finite a choice is no finding of its own.
        if expected.poisoned {
            return Judgement::Unjudged(recorded);
        }
        if !columns || recorded.rows() > exact.rows() {
            return Judgement::DoesNotFit { found: recorded.shape().to_vec() };
        }
        return Judgement::Choice(choice::compare(recorded, exact, expected.choice, discrete));
    }
    let Some(noise) = expected.noise.filter(|_| !recorded.is_empty()) else {
        return Judgement::Unjudged(recorded);
    };
    let most = expected.exact.shape();
    let fits = most.len() == recorded.shape().len() && most.iter().zip(recorded.shape()).all(|(m, n)| m >= n);
    if !fits || noise.variance.len() != expected.exact.len() {
        return Judgement::DoesNotFit { found: recorded.shape().to_vec() };
    }
    let (exact, noise) = held(expected.exact, noise, recorded.shape(), axes, expected.rows);
    if matches!(kind, OpKind::AttnScores(_)) {
        unmask(&mut recorded, &exact);
    }
    if expected.poisoned {
        forget_poisoned(&mut recorded, &exact);
    }
    let mut whole = None;
    let (recorded, exact, noise) = match places(expected.part, axes, expected.rows, recorded.shape()) {
        None => (recorded, exact, noise),
        Some((_, places)) if places.is_empty() => return Judgement::Unjudged(recorded),
        Some((axis, places)) => {
            let part = recorded.select(axis, &places);
            whole = Some((recorded, exact.clone().into_owned()));
            let (exact, noise) = select(exact, noise, axis, &places);
            (part, exact, noise)
        }
    };
    let shape = recorded.shape().to_vec();
    let (axes, recorded, exact) = by_head(program, op, recorded, exact, &noise);
    let mut measured = Measured::new(&recorded, &exact, &noise, &axes);
    if let Some(copied) = expected.copied {
        measured.farther = copied.farther(&recorded, &exact);
    }
    Judgement::Tensor(Box::new(Compared { measured, recorded, exact, noise, axes, shape, whole }))
}

impl Copied {
    /// Elements of the newest rows that are not the nearest neighbour, in the cache's format, of what was written.
    fn farther(self, recorded: &Tensor<f64>, exact: &Tensor<f64>) -> usize {
        let [keys, heads, dim] = *exact.shape() else { return 0 };
        let first = keys.saturating_sub(self.rows) * heads * dim;
        let (Some(recorded), Some(exact)) = (recorded.data().get(first..), exact.data().get(first..)) else {
            return 0;
        };
        let reach = self.format.reach(exact, (heads, dim));
        // What was recorded may itself be a rounding of what was written: it lies within half of its own last place.
        let written = shortest(exact).unwrap_or(Float::F64);
        let same = self.format == CacheFormat::Float(written);
        // Numbers times a scale are rounded when they are recorded, or read.
        let held = shortest(recorded).filter(|_| self.format.float().is_none());
        let held = |y: f64| held.map_or(0.0, |f| f.ulp(y) / 2.0);
        let slack = |y: f64| if same { 0.0 } else { written.ulp(y) / 2.0 + held(y) };
        let farther = |((&x, &y), &reach): ((&f64, &f64), &f64)| {
            x.is_finite() && y.is_finite() && (x - y).abs() > (reach + slack(y)) * (1.0 + 1e-9)
        };
        let count = recorded.iter().zip(exact).zip(&reach).filter(|e| farther(*e)).count();
        // Whatever the scale: rounding to nearest errs either way as often, and what is cut off towards zero.
        let errors =
            recorded.iter().zip(exact).filter(|(x, y)| (*x - *y).abs() > slack(**y) && x.is_finite());
        let (towards, away): (Vec<_>, Vec<_>) = errors.partition(|(x, y)| x.abs() < y.abs());
        let erring = towards.len() + away.len();
        let cut_off = erring >= ENOUGH && towards.len() as f64 > ONE_SIDED * erring as f64;
        count.max(if cut_off { towards.len() } else { 0 })
    }
}

/// The shortest format that holds all values.
pub(crate) fn shortest(values: &[f64]) -> Option<Float> {
    let holds = |f: &Float| values.iter().all(|&x| !x.is_finite() || f.round(x) == x);
    [Float::BF16, Float::F16, Float::F32].into_iter().find(holds)
}

/// Of so many errors, more than nine in ten on one side are no chance: half are, give or take six deviations.
const ENOUGH: usize = 64;
const ONE_SIDED: f64 = 0.9;

/// A projection's channels are heads for the operation that reads it: seen as such, unless its
/// noise is known for whole tokens only.
fn by_head<'e>(
    program: &Program,
    op: usize,
    recorded: Tensor<f64>,
    exact: Cow<'e, Tensor<f64>>,
    noise: &Noise<f64>,
) -> (Vec<Axis>, Tensor<f64>, Cow<'e, Tensor<f64>>) {
    let axes = &program.ops[op].axes;
    let reader = program.ops.iter().find(|r| r.inputs.first().is_some_and(|v| v.0 == op));
    if let (&[Axis::Tokens, Axis::Channels(width)], Some(reader)) = (axes.as_slice(), reader)
        && let [.., Axis::Heads(heads), Axis::Channels(dim)] = *reader.axes
        && heads * dim == width
        && noise.along.is_empty()
    {
        let shape = [recorded.rows(), heads, dim];
        if let (Ok(recorded), Ok(exact)) =
            (recorded.clone().reshape(shape), exact.clone().into_owned().reshape(shape))
        {
            let axes = vec![Axis::Tokens, Axis::Heads(heads), Axis::Channels(dim)];
            return (axes, recorded, Cow::Owned(exact));
        }
    }
    (axes.clone(), recorded, exact)
}

/// Puts the exact value in place of rows, along the last axis, that hold something that is not finite: their other
/// elements may follow from it (a norm makes zeros of them).
fn forget_poisoned(recorded: &mut Tensor<f64>, exact: &Tensor<f64>) {
    let width = recorded.shape().last().copied().unwrap_or(1).max(1);
    for (row, exact) in recorded.data_mut().chunks_mut(width).zip(exact.data().chunks(width)) {
        if row.iter().any(|x| !x.is_finite()) {
            row.copy_from_slice(exact);
        }
    }
}

/// Puts the exact value where the recorded one is not finite.
fn make_finite(recorded: &mut Tensor<f64>, exact: &Tensor<f64>) {
    for (x, y) in recorded.data_mut().iter_mut().zip(exact.data()) {
        if !x.is_finite() && y.is_finite() {
            *x = *y;
        }
    }
}

/// Some engines record scores after the mask: huge negative numbers say nothing about the product.
fn unmask(recorded: &mut Tensor<f64>, exact: &Tensor<f64>) {
    for (x, y) in recorded.data_mut().iter_mut().zip(exact.data()) {
        if *x == f64::NEG_INFINITY || *x < -1e4 && *x < -100.0 * y.abs() {
            *x = *y;
        }
    }
}

/// The part of the exact value, and of its noise, that was recorded: chosen rows of the step, else the last rows or keys.
fn held<'e>(
    exact: Cow<'e, Tensor<f64>>,
    noise: Noise<f64>,
    shape: &[usize],
    axes: &[Axis],
    step: &StepInput,
) -> (Cow<'e, Tensor<f64>>, Noise<f64>) {
    let tokens = axes.iter().position(|axis| *axis == Axis::Tokens);
    let chosen = tokens.zip(step.rows.as_ref()).filter(|&(axis, rows)| {
        shape.get(axis) == Some(&rows.len()) && exact.shape().get(axis).is_some_and(|all| *all > rows.len())
    });
    let (exact, noise) = match chosen {
        Some((axis, rows)) => select(exact, noise, axis, rows),
        None => (exact, noise),
    };
    last(exact, noise, shape)
}

/// Where a recorded tensor of this shape is compared, along which axis; none: everywhere.
fn places(part: &Part, axes: &[Axis], step: &StepInput, shape: &[usize]) -> Option<(usize, Vec<usize>)> {
    let of = |wanted: Axis| axes.iter().position(|axis| *axis == wanted);
    match part {
        Part::All | Part::Nothing => None,
        Part::Rows(rows) => {
            let axis = of(Axis::Tokens)?;
            let held = step.held(shape[axis]);
            Some((axis, (0..held.len()).filter(|&i| rows.binary_search(&held[i]).is_ok()).collect()))
        }
        Part::Keys(keys) => Some((of(Axis::Keys)?, keys.clone())),
    }
}

/// Slices of an exact value along an axis that is not the last one, and their noise.
fn select<'e>(
    exact: Cow<'e, Tensor<f64>>,
    noise: Noise<f64>,
    axis: usize,
    places: &[usize],
) -> (Cow<'e, Tensor<f64>>, Noise<f64>) {
    let shape = exact.shape();
    let part = |shape: &[usize], data: Vec<f64>| {
        Tensor::new(shape.to_vec(), data).map(|t| t.select(axis, places).into_data()).unwrap_or_default()
    };
    let rows = &shape[..shape.len() - 1];
    let noise = Noise {
        variance: part(shape, noise.variance),
        lanes: noise.lanes.iter().map(|lane| lane.select(axis, places)).collect(),
        along: part(rows, noise.along),
        factor: part(rows, noise.factor),
        ..noise
    };
    (Cow::Owned(exact.select(axis, places)), noise)
}

/// The part of the exact value, and of its noise, that was recorded: the last rows or keys.
fn last<'e>(
    exact: Cow<'e, Tensor<f64>>,
    noise: Noise<f64>,
    shape: &[usize],
) -> (Cow<'e, Tensor<f64>>, Noise<f64>) {
    if exact.shape() == shape {
        return (exact, noise);
    }
    let cut = |t: &Tensor<f64>| tail(t, shape);
    let variance = Tensor::new(exact.shape().to_vec(), noise.variance).map(|v| cut(&v).into_data());
    let variance = variance.unwrap_or_default();
    let rows = |s: &[usize]| s[..s.len().saturating_sub(1)].to_vec();
    let by_row = |sums: Vec<f64>| {
        let sums = Tensor::new(rows(exact.shape()), sums).map(|a| tail(&a, &rows(shape)).into_data());
        sums.unwrap_or_default()
    };
    let (along, factor) = (by_row(noise.along), by_row(noise.factor));
    let lanes = noise.lanes.iter().map(cut).collect();
    (Cow::Owned(cut(&exact)), Noise { variance, lanes, along, factor, ..noise })
}

/// The last elements along every axis.
fn tail(t: &Tensor<f64>, shape: &[usize]) -> Tensor<f64> {
    let mut out = Tensor::zeros(shape.to_vec());
    let mut index = vec![0usize; shape.len()];
    for x in out.data_mut() {
        let mut offset = 0;
        for (axis, &i) in index.iter().enumerate() {
            let full = t.shape()[axis];
            offset = offset * full + i + full.saturating_sub(shape[axis]);
        }
        *x = t.data()[offset];
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_holds_the_nearest_neighbour_ties_either_way_and_nothing_farther() {
        // Neighbours of E4M3 between 1 and 2 are an eighth apart.
        let written = Tensor::new([2, 1, 2], vec![1.0, 1.06, 1.0625, 1.1]).unwrap();
        let copied = Copied { format: CacheFormat::Float(Float::E4M3), rows: 2 };
        let cached = |values: [f64; 4]| Tensor::new([2, 1, 2], values.to_vec()).unwrap();
        assert_eq!(copied.farther(&cached([1.0, 1.0, 1.0, 1.125]), &written), 0);
        assert_eq!(copied.farther(&cached([1.0, 1.0, 1.125, 1.125]), &written), 0, "a tie");
        assert_eq!(copied.farther(&cached([1.0, 1.0, 1.0, 1.0]), &written), 1, "cut off");
        let newest = Copied { rows: 1, ..copied };
        assert_eq!(
            newest.farther(&cached([7.0, 7.0, 1.0, 1.125]), &written),
            0,
            "older rows were judged before"
        );
    }

    #[test]
    fn whatever_the_scale_a_cache_that_cuts_off_is_wrong() {
        let written: Vec<f64> = (0..128).map(|i| (f64::from(i) * 0.731).sin() * 3.0).collect();
        let step = 0.03;
        let with = |round: fn(f64) -> f64| {
            let cached = written.iter().map(|y| round(y / step) * step).collect();
            Tensor::new([4, 1, 32], cached).unwrap()
        };
        let written = Tensor::new([4, 1, 32], written.clone()).unwrap();
        let copied = Copied { format: CacheFormat::Scaled(Float::E4M3), rows: 4 };
        assert_eq!(copied.farther(&with(f64::round), &written), 0);
        assert!(copied.farther(&with(f64::trunc), &written) > 64);
    }

    #[test]
    fn the_tail_is_taken_along_every_axis() {
        let t = Tensor::new([2, 3], (0..6).map(f64::from).collect()).unwrap();
        assert_eq!(tail(&t, &[1, 2]).data(), [4.0, 5.0]);
        assert_eq!(tail(&t, &[2, 3]), t);
    }

    #[test]
    fn a_row_in_which_an_infinity_goes_on_says_nothing_of_its_own() {
        let mut recorded = Tensor::new([2, 2], vec![0.0, f64::NAN, 5.0, 6.0]).unwrap();
        let exact = Tensor::new([2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        forget_poisoned(&mut recorded, &exact);
        assert_eq!(recorded.data(), [1.0, 2.0, 5.0, 6.0]);
    }
}
