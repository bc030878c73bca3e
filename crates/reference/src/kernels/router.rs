//! What a router does between its logits and its experts.

use firstdiff_model::ops::{RouterScores, RouterWeights, Scoring};
use firstdiff_tensor::Real;

use super::Rounding;

/// Scores of rows of `width` logits.
///
/// Softmax errs as in attention: an exponential in proportion to its argument, the sum as a sum of
/// positive terms. Where results are kept in the activations' format, the softplus is stored before its root is taken.
pub(crate) fn scores<T: Real>(logits: &[T], width: usize, op: &RouterScores, rounding: Rounding) -> Vec<T> {
    let mut out = vec![T::ZERO; logits.len()];
    let (exponent, inner) = (rounding.site(1), rounding.site(2));
    for (row, (out, logits)) in out.chunks_mut(width).zip(logits.chunks(width)).enumerate() {
        let at = |i: usize| row * width + i;
        match op.scoring {
            Scoring::Softmax => {
                let max = logits.iter().fold(T::NEG_INFINITY, |m, &l| if l > m { l } else { m });
                let mut sum = 0.0;
                for (i, (p, &l)) in out.iter_mut().zip(logits).enumerate() {
                    let x = (l - max).to_f64();
                    let e = x.exp() * exponent.factor(x.abs(), at(i)) * exponent.lean(2.0, 0);
                    *p = T::from_f64(e);
                    sum += e;
                }
                let scale = T::from_f64(rounding.positive_sum(width, row) / sum);
                out.iter_mut().for_each(|p| *p *= scale);
            }
            Scoring::Sigmoid => {
                for (i, (p, &l)) in out.iter_mut().zip(logits).enumerate() {
                    let x = l.to_f64();
                    *p = T::from_f64(exponent.factor(4.0 + x.abs(), at(i)) / (1.0 + (-x).exp()));
                }
            }
            Scoring::SqrtSoftplus => {
                for (i, (p, &l)) in out.iter_mut().zip(logits).enumerate() {
                    let x = l.to_f64();
                    let softplus = softplus(x) * exponent.factor(4.0 + x.abs(), at(i));
                    let softplus =
                        if op.wide { softplus } else { inner.store(T::from_f64(softplus), at(i)).to_f64() };
                    *p = T::from_f64(softplus.sqrt() * rounding.lean(1.0, 1));
                }
            }
        }
    }
    out
}

/// `ln(1 + exp(x))`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Weights of the chosen ones: `choice` holds `k` numbers a row, `scores` `width` values. What is no
/// number of a score weighs nothing.
pub(crate) fn weights<T: Real>(
    scores: &[T],
    width: usize,
    (choice, k): (&[T], usize),
    op: &RouterWeights,
    rounding: Rounding,
) -> Vec<T> {
    let store = |site: u64, x: f64, at: usize| {
        if op.wide {
            x * rounding.site(site).factor(1.0, at)
        } else {
            rounding.site(site).store(T::from_f64(x), at).to_f64()
        }
    };
    let mut out = vec![T::ZERO; choice.len()];
    let rows = out.chunks_mut(k).zip(choice.chunks(k)).zip(scores.chunks(width));
    for (row, ((out, choice), scores)) in rows.enumerate() {
        let chosen = |c: &T| super::number(*c).and_then(|c| scores.get(c)).map_or(0.0, |s| s.to_f64());
        let values: Vec<f64> = choice.iter().map(chosen).collect();
        let sum = op.normalise.map(|eps| {
            let sum = values.iter().sum::<f64>() * rounding.positive_sum(k, row);
            store(1, sum, row) + eps
        });
        for (i, (out, value)) in out.iter_mut().zip(values).enumerate() {
            let at = row * k + i;
            let share = sum.map_or(value, |sum| if sum == 0.0 { 0.0 } else { value / sum });
            // The last rounding is the store's, and is accounted for there.
            let scaled = if op.scale == 1.0 { share } else { store(2, share, at) * op.scale };
            *out = T::from_f64(if sum.is_some() { scaled * rounding.lean(1.0, 0) } else { scaled });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_their_formulas() {
        let logits = [0.3, -1.2, 2.0];
        let of = |scoring| scores(&logits, 3, &RouterScores { scoring, wide: true }, Rounding::exact());
        let sum: f64 = logits.iter().map(|l: &f64| l.exp()).sum();
        for (i, l) in logits.iter().enumerate() {
            // Each is a handful of operations in f64.
            assert!((of(Scoring::Softmax)[i] - l.exp() / sum).abs() < 8.0 * f64::EPSILON);
            assert!((of(Scoring::Sigmoid)[i] - 1.0 / (1.0 + (-l).exp())).abs() < 8.0 * f64::EPSILON);
            assert!((of(Scoring::SqrtSoftplus)[i] - (1.0 + l.exp()).ln().sqrt()).abs() < 8.0 * f64::EPSILON);
        }
        let far = scores(
            &[800.0f64, -800.0],
            2,
            &RouterScores { scoring: Scoring::SqrtSoftplus, wide: true },
            Rounding::exact(),
        );
        assert_eq!((far[0], far[1]), (800f64.sqrt(), 0.0));
    }

    #[test]
    fn weights_sum_to_the_scale_only_when_normalised() {
        let op = |normalise| RouterWeights { normalise, scale: 2.0, wide: true };
        let of = |normalise, choice: &[f64]| {
            weights(&[0.5, 0.25, 0.125], 3, (choice, choice.len()), &op(normalise), Rounding::exact())
        };
        assert_eq!(of(None, &[2.0, 0.0]), [0.25, 1.0]);
        assert_eq!(of(Some(0.0), &[1.0, 0.0]), [2.0 / 3.0, 4.0 / 3.0]);
        assert_eq!(of(Some(0.0), &[-1.0, 7.0]), [0.0, 0.0], "what is no expert weighs nothing");
    }
}
