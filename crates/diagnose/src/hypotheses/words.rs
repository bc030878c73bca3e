//! What was read of values that one part of a kernel hands to another, in memory that is used again: of each element the
//! right one, what the memory held before, or nothing. For operations that have nothing of their own that a single head could
//! get wrong: copies into a cache, rotations, norms of heads.

use firstdiff_model::OpKind;
use firstdiff_model::ops::{NormForm, RmsNorm, Rope};
use firstdiff_tensor::Tensor;

use crate::At;
use crate::scene::short;

/// What was read of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Got {
    /// What was written.
    Right,
    /// What the same place held before: a finite number.
    Before(f64),
    /// Nothing: memory that nobody wrote, and that is zero.
    Zero,
    /// Something that is not finite, where what was written is.
    Lost,
}

/// What was handed over to an operation in a step of one row, and what the same memory held before.
pub(super) struct Words {
    pub right: Vec<f64>,
    /// The operation and step whose value it was; none where nothing was recorded, or nobody wrote before.
    pub place: Option<(usize, usize)>,
    before: Option<Vec<f64>>,
}

impl Words {
    pub fn of(at: &At, index: usize, step: usize) -> Option<Words> {
        let one = |step: usize| at.site.steps.get(step).is_some_and(|s| s.positions.len() == 1);
        let from = at.program().ops[index].inputs.first().filter(|_| one(step))?.0;
        let right = at.recorded(from, step)?.into_data();
        // Every layer's value of this name goes through the same memory: it held the layer before, or the last layer of
        // the step before.
        let ops = &at.program().ops;
        let alike: Vec<usize> = (0..ops.len()).filter(|&i| short(&ops[i]) == short(&ops[from])).collect();
        let own = alike.iter().position(|&i| i == from)?;
        let place = match own.checked_sub(1) {
            Some(last) => Some((alike[last], step)),
            None => step.checked_sub(1).filter(|s| one(*s)).map(|s| (alike[alike.len() - 1], s)),
        };
        let before = place.and_then(|(op, step)| at.recorded(op, step)).map(Tensor::into_data);
        let before = before.filter(|b| b.len() == right.len());
        Some(Words { right, place: place.filter(|_| before.is_some()), before })
    }

    pub fn before(&self, i: usize) -> Option<f64> {
        self.before.as_ref().map(|b| b[i])
    }

    /// What may have been read of an element: the right number first.
    fn finite(&self, i: usize) -> Vec<Got> {
        let right = self.right[i].is_finite().then_some(Got::Right);
        let before = self.before(i).filter(|b| b.is_finite()).map(Got::Before);
        right.into_iter().chain(before).collect()
    }

    pub fn number(&self, i: usize, got: Got) -> f64 {
        match got {
            Got::Right => self.right[i],
            Got::Before(x) => x,
            Got::Zero | Got::Lost => 0.0,
        }
    }
}

/// What was read of each element of the operation's input in a step of one row, as its output of that row says; `None`
/// where something else happened.
pub(super) fn read(at: &At, index: usize, step: usize, engine: &[f64]) -> Option<(Words, Vec<Got>)> {
    let words = Words::of(at, index, step).filter(|w| w.right.len() == engine.len())?;
    let whole = |row: &[f64], dim: usize| dim > 0 && row.len().is_multiple_of(dim);
    let got = match &at.program().ops[index].kind {
        OpKind::Cache(_) => (0..engine.len()).map(|i| copied(&words, i, engine[i])).collect(),
        OpKind::Rope(rope) if whole(engine, rope.dim) => {
            let position = *at.site.steps[step].positions.first()?;
            rotated(&words, rope, position, engine)?
        }
        OpKind::RmsNorm(norm) if norm.heads.is_some() && whole(engine, norm.dim) => {
            let weight = at.weight(&norm.weight).filter(|w| w.len() == norm.dim)?;
            normalised(&words, norm, &weight, engine)?
        }
        _ => return None,
    };
    sound(at, index, &words, &got).then_some((words, got))
}

/// Whether what is not finite can be memory that was read too early: what was written is finite everywhere, and what was
/// there before is not, or else it is no matter of size.
fn sound(at: &At, index: usize, words: &Words, got: &[Got]) -> bool {
    let follows = |i: usize| got[i] != Got::Lost || words.before(i).is_some_and(|before| !before.is_finite());
    let finite = words.right.iter().all(|x| x.is_finite());
    !got.contains(&Got::Lost) || finite && ((0..got.len()).all(follows) || of_any_size(at, index, words, got))
}

/// Whether what is not finite is no matter of size, as where a format's range ends: something as large is right in the same
/// row, or in that of another layer or step.
pub(super) fn of_any_size(at: &At, index: usize, words: &Words, got: &[Got]) -> bool {
    let ops = &at.program().ops;
    let kind = &ops[index].kind;
    let lost = sizes(kind, &words.right, |i| got[i] == Got::Lost);
    let Some(smallest) = lost.into_iter().min_by(f64::total_cmp) else { return true };
    let finite = |values: &[f64]| values.iter().all(|x| x.is_finite());
    let reaches = |sizes: Vec<f64>| sizes.into_iter().any(|size| size >= smallest);
    // The size of what another place read, where it gave finite numbers.
    let elsewhere = |op: usize, step: usize| {
        let healthy = at.recorded(op, step).is_some_and(|t| finite(t.data()));
        let from = ops[op].inputs.first().filter(|_| healthy);
        let input = from.and_then(|from| at.recorded(from.0, step)).filter(|t| finite(t.data()));
        input.is_some_and(|input| reaches(sizes(kind, input.data(), |_| true)))
    };
    let steps = || (0..at.site.steps.len()).filter(|&s| at.site.steps[s].positions.len() == 1);
    let mut alike = (0..ops.len()).filter(|&i| short(&ops[i]) == short(&ops[index]));
    reaches(sizes(kind, &words.right, |i| got[i] != Got::Lost))
        || alike.any(|op| steps().any(|step| elsewhere(op, step)))
}

/// The largest number of each of the picked elements that are not finite together: one of a copy, a pair of a rotation, a
/// head of a norm.
fn sizes(kind: &OpKind, values: &[f64], pick: impl Fn(usize) -> bool) -> Vec<f64> {
    let size = |unit: &[usize]| unit.iter().map(|&i| values[i].abs()).fold(0.0, f64::max);
    let first = (0..values.len()).filter(|&i| pick(i));
    match kind {
        OpKind::Rope(rope) => {
            let half = rope.dim / 2;
            let pairs = first.filter(|i| i % rope.dim < half && i + half < values.len());
            pairs.map(|i| size(&[i, i + half])).collect()
        }
        OpKind::RmsNorm(norm) => {
            let heads = first.filter(|i| i % norm.dim == 0 && i + norm.dim <= values.len());
            heads.map(|i| size(&(i..i + norm.dim).collect::<Vec<_>>())).collect()
        }
        _ => first.map(|i| size(&[i])).collect(),
    }
}

/// One element of a row that was copied.
fn copied(words: &Words, i: usize, engine: f64) -> Got {
    let right = words.right[i];
    if !engine.is_finite() {
        return if right.is_finite() { Got::Lost } else { Got::Right };
    }
    let finite = words.finite(i);
    let nearest = finite
        .iter()
        .copied()
        .min_by(|a, b| (words.number(i, *a) - engine).abs().total_cmp(&(words.number(i, *b) - engine).abs()));
    match nearest {
        _ if engine == 0.0 && finite.iter().all(|got| words.number(i, *got) != 0.0) => Got::Zero,
        Some(got) => got,
        None => Got::Right,
    }
}

/// A row that was rotated: each pair from the numbers that give the engine's.
fn rotated(words: &Words, rope: &Rope, position: u32, engine: &[f64]) -> Option<Vec<Got>> {
    let half = rope.dim / 2;
    let frequencies = rope.frequencies.at(position);
    let mut got = vec![Got::Right; engine.len()];
    for (i, j) in (0..engine.len()).filter(|i| i % rope.dim < half).map(|i| (i, i + half)) {
        let (s, c) = (f64::from(position) * frequencies.get(i % rope.dim)?).sin_cos();
        if !engine[i].is_finite() || !engine[j].is_finite() {
            (!engine[i].is_finite() && !engine[j].is_finite()).then_some(())?;
            if words.right[i].is_finite() && words.right[j].is_finite() {
                (got[i], got[j]) = (Got::Lost, Got::Lost);
            }
            continue;
        }
        let mut least = f64::INFINITY;
        for a in words.finite(i) {
            for b in words.finite(j) {
                let (x, y) = (words.number(i, a), words.number(j, b));
                let first = rope.amplitude * (x * c - y * s) - engine[i];
                let second = rope.amplitude * (y * c + x * s) - engine[j];
                let error = first * first + second * second;
                if error < least {
                    (least, got[i], got[j]) = (error, a, b);
                }
            }
        }
    }
    Some(got)
}

/// A row whose heads were normalised: a head in which one number is not finite is lost, and one with a number of
/// another size has another scale.
fn normalised(words: &Words, norm: &RmsNorm, weight: &[f32], engine: &[f64]) -> Option<Vec<Got>> {
    let mut got = vec![Got::Right; engine.len()];
    let weight =
        |i: usize| f64::from(weight[i % norm.dim]) + f64::from(u8::from(norm.form == NormForm::OnePlus));
    for first in (0..engine.len()).step_by(norm.dim) {
        let head = first..first + norm.dim;
        if !engine[head.clone()].iter().all(|x| x.is_finite()) {
            engine[head.clone()].iter().all(|x| !x.is_finite()).then_some(())?;
            if words.right[head.clone()].iter().all(|x| x.is_finite()) {
                got[head].fill(Got::Lost);
            }
            continue;
        }
        if head.clone().any(|i| words.finite(i).is_empty()) {
            continue;
        }
        let error = |mix: &[Got]| -> f64 {
            let numbers = || head.clone().zip(mix).map(|(i, got)| (i, words.number(i, *got)));
            let square: f64 = numbers().map(|(_, x)| x * x).sum();
            let scale = 1.0 / (square / norm.dim as f64 + norm.eps).sqrt();
            numbers().map(|(i, x)| (weight(i) * x * scale - engine[i]).powi(2)).sum()
        };
        // Each number in turn says what the scale was, and the scale says what the others were.
        let mut best: Vec<Got> = head.clone().map(|i| words.finite(i)[0]).collect();
        let mut least = error(&best);
        for i in head.clone() {
            for one in words.finite(i) {
                let scale = engine[i] / (weight(i) * words.number(i, one));
                if !scale.is_finite() {
                    continue;
                }
                let left =
                    |j: usize, got: &Got| (weight(j) * words.number(j, *got) * scale - engine[j]).abs();
                let nearest =
                    |j: usize| words.finite(j).into_iter().min_by(|a, b| left(j, a).total_cmp(&left(j, b)));
                let mix: Vec<Got> = head.clone().filter_map(nearest).collect();
                if error(&mix) < least {
                    (least, best) = (error(&mix), mix);
                }
            }
        }
        got[head].copy_from_slice(&best);
    }
    Some(got)
}

#[cfg(test)]
mod tests {
    use firstdiff_model::RopeFrequencies;

    use super::*;

    const NAN: f64 = f64::NAN;

    fn words(right: [f64; 4], before: [f64; 4]) -> Words {
        Words { right: right.to_vec(), place: Some((0, 0)), before: Some(before.to_vec()) }
    }

    fn rope() -> Rope {
        Rope { heads: 1, dim: 4, frequencies: RopeFrequencies::Fixed(vec![1.0, 0.1]), amplitude: 1.0 }
    }

    fn turned(x: [f64; 4], position: f64) -> Vec<f64> {
        let pair = |i: usize, f: f64| {
            let (s, c) = (position * f).sin_cos();
            (x[i] * c - x[i + 2] * s, x[i + 2] * c + x[i] * s)
        };
        let (a, b) = (pair(0, 1.0), pair(1, 0.1));
        vec![a.0, b.0, a.1, b.1]
    }

    #[test]
    fn an_element_of_a_copy_is_the_right_one_the_one_before_zero_or_nothing() {
        let words = words([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let got: Vec<Got> =
            [1.0, 6.0, 0.0, NAN].into_iter().enumerate().map(|(i, x)| copied(&words, i, x)).collect();
        assert_eq!(got, [Got::Right, Got::Before(6.0), Got::Zero, Got::Lost]);
    }

    #[test]
    fn what_was_not_finite_when_it_was_written_is_not_lost() {
        let words = words([NAN, NAN, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        assert_eq!([copied(&words, 0, NAN), copied(&words, 1, 6.0)], [Got::Right, Got::Before(6.0)]);
    }

    #[test]
    fn either_number_of_a_rotated_pair_may_be_the_one_before() {
        let words = words([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let got = rotated(&words, &rope(), 3, &turned([1.0, 6.0, 7.0, 4.0], 3.0)).unwrap();
        assert_eq!(got, [Got::Right, Got::Before(6.0), Got::Before(7.0), Got::Right]);
    }

    #[test]
    fn a_rotation_loses_both_numbers_of_a_pair_or_none() {
        let words = words([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let mut engine = turned([1.0, 2.0, 3.0, 4.0], 3.0);
        engine[1] = NAN;
        assert_eq!(rotated(&words, &rope(), 3, &engine), None);
        engine[3] = NAN;
        assert_eq!(
            rotated(&words, &rope(), 3, &engine).unwrap(),
            [Got::Right, Got::Lost, Got::Right, Got::Lost]
        );
    }

    #[test]
    fn a_norm_shows_which_of_a_head_s_numbers_were_the_ones_before() {
        let words = words([1.0, -2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let norm = RmsNorm { weight: "w".into(), eps: 1e-6, dim: 4, heads: Some(1), form: NormForm::Stored };
        let (mix, weight) = ([1.0, 6.0, 3.0, 8.0], [0.5, 1.5, 2.0, 1.0]);
        let scale = 1.0 / (mix.iter().map(|x: &f64| x * x).sum::<f64>() / 4.0 + 1e-6).sqrt();
        let engine: Vec<f64> = mix.iter().zip(weight).map(|(x, w)| x * f64::from(w) * scale).collect();
        let got = normalised(&words, &norm, &weight, &engine).unwrap();
        assert_eq!(got, [Got::Right, Got::Before(6.0), Got::Right, Got::Before(8.0)]);
    }
}
