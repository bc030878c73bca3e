//! Where two streams of tokens part, and whether rounding decides it.

use firstdiff_model::Model;
use firstdiff_reference::{Arithmetic, StepInput};
use serde::Serialize;

use super::TokenKind;
use super::chains::Row;
use super::reference::{self, TIE, Top, Wanted};
use super::sampling::Sampling;
use crate::Error;

/// The first token that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Fork {
    /// Its place among the generated tokens, from 0; where no prompt is known, among all.
    pub index: usize,
    /// Its place among all tokens.
    pub position: usize,
    /// The sequence of a batch.
    pub sequence: i64,
    /// The tokens of `a` and `b`.
    pub ids: [i64; 2],
    /// Their text, with a model.
    pub text: Option<[String; 2]>,
    /// The reference's own token, with a model.
    pub reference: Option<i64>,
    /// How far each side's own logits, or with a model the reference's, prefer the best token over
    /// that side's: with a model 0 for the side that chose as the reference does.
    pub margins: Option<[f64; 2]>,
    /// Standard deviation of each under rounding.
    pub noises: Option<[f64; 2]>,
    /// Why it cannot be judged, where it cannot.
    pub unjudged: Option<String>,
}

/// The ten best at the fork.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tops {
    /// By the logits of the first.
    pub a: Option<Vec<Top>>,
    /// By those of the second.
    pub b: Option<Vec<Top>>,
    /// By the reference's, with a model.
    pub reference: Option<Vec<Top>>,
}

/// A verdict on a fork.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub kind: Option<TokenKind>,
    pub margin: Option<f64>,
    pub noise: Option<f64>,
    pub margins: Option<[f64; 2]>,
    pub noises: Option<[f64; 2]>,
    pub reference: Option<i64>,
    pub top: Option<Vec<Top>>,
    pub unjudged: Option<String>,
    /// Sides whose token rounding does not explain.
    pub wrong: Vec<usize>,
}

/// Roundings in a row that a difference may amount to: 4,096 of them, each with a deviation of one
/// unit roundoff, reach 64. A model of 128 layers with 32 roundings each has as many.
const MAX_ROUNDOFFS: f64 = 64.0;

/// Judges a fork by the logits of both sides alone.
///
/// Both saw the same tokens, so both rows approximate the same exact logits, and their difference is
/// what separates the two engines. At the fork each side prefers its own token: the two margins add
/// up to the difference of the differences at the two tokens. If the engines differ there as they
/// do over the rest of the vocabulary, it is noise that decided; if by more, something acted on
/// these tokens. `roundoff` is that of the coarser arithmetic: a difference everywhere that no
/// number of roundings in it amounts to is a difference that a model must explain.
pub(crate) fn by_logits(a: &Row, b: &Row, ids: [i64; 2], roundoff: f64) -> Judgement {
    let unjudged = |why: String| Judgement { unjudged: Some(why), ..Judgement::default() };
    if a.values.len() != b.values.len() {
        return unjudged(format!(
            "the vocabularies differ: {} and {} logits",
            a.values.len(),
            b.values.len()
        ));
    }
    let at = |row: &Row| Some([row.get(ids[0])?, row.get(ids[1])?]);
    let (Some(x), Some(y)) = (at(a), at(b)) else {
        return unjudged("a token lies outside the recorded logits".into());
    };
    let pairs = || a.values.iter().zip(&b.values).filter(|(p, q)| p.is_finite() && q.is_finite());
    let spread = deviation(pairs().map(|(p, q)| p - q));
    let signal = deviation(pairs().map(|(p, _)| *p));
    let margins = [x[0] - x[1], y[1] - y[0]];
    let margin = margins[0] + margins[1];
    // The difference of two independent deviations.
    let noise = spread * 2f64.sqrt();
    let storage = a.roundoff.max(b.roundoff) * (x[0].abs() + x[1].abs());
    let roundoffs = if signal > 0.0 { spread / signal / roundoff } else { 0.0 };
    let kind = if margin > (TIE * noise).max(storage) {
        Some(TokenKind::Divergence)
    } else {
        (roundoffs <= MAX_ROUNDOFFS).then_some(TokenKind::TieFlip)
    };
    let unjudged = kind.is_none().then(|| {
        format!(
            "the two sides' logits differ by {roundoffs:.0} roundoffs over the whole vocabulary, more than rounding \
             alone can be trusted with; which of them is right only a model can tell"
        )
    });
    Judgement {
        kind,
        margin: Some(margin),
        noise: Some(noise),
        margins: Some(margins),
        noises: Some([noise, noise]),
        unjudged,
        ..Judgement::default()
    }
}

fn deviation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let (count, sum) = values.clone().fold((0.0, 0.0), |(n, s), x| (n + 1.0, s + x));
    if count == 0.0 {
        return 0.0;
    }
    let mean = sum / count;
    (values.map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// A side as the reference needs it.
#[derive(PartialEq)]
pub(crate) struct Judged<'s> {
    pub arithmetic: &'s Arithmetic,
    pub sampling: &'s Sampling,
    pub window: Option<usize>,
}

/// Judges a fork by the reference, teacher-forced on the tokens before it: each side's token is
/// explained where the reference prefers its own by no more than the noise of that side's
/// arithmetic.
pub(crate) fn by_model(
    model: &Model,
    before: &[i64],
    prompt: usize,
    ids: [i64; 2],
    sides: [Judged; 2],
    lanes: usize,
) -> Result<Judgement, Error> {
    let vocab = model.program.vocab;
    let outside = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= vocab);
    if let Some(at) = before.iter().position(outside) {
        let unjudged =
            Some(format!("token {} at {at} is outside the model's vocabulary of {vocab}", before[at]));
        return Ok(Judgement { unjudged, ..Judgement::default() });
    }
    let Some(row) = before.len().checked_sub(1) else {
        let unjudged = Some(
            "nothing is before it: give streams with their prompt, as traces and `firstdiff run` have".into(),
        );
        return Ok(Judgement { unjudged, ..Judgement::default() });
    };
    let steps = [StepInput::new(before, 0)];
    let mut out = Judgement::default();
    let (mut margins, mut noises) = ([0.0; 2], [0.0; 2]);
    let alike = sides[0] == sides[1];
    for (i, side) in sides.iter().enumerate().take(if alike { 1 } else { 2 }) {
        let windows = side.sampling.windows(before, prompt);
        let window = windows.get(side.window.unwrap_or(0)).copied().unwrap_or_default();
        let adjust = |logits: &mut [f64]| side.sampling.penalise(logits, window);
        let places: &[usize] = if alike { &[0, 1] } else { std::slice::from_ref(&[0, 1][i]) };
        let tokens = places.iter().map(|&p| ids[p]).collect();
        let wanted = [Wanted { step: 0, row, tokens, adjust: &adjust }];
        let exact = reference::preferences(model, side.arithmetic, &steps, &wanted, None)?;
        let noise = reference::noise(model, side.arithmetic, lanes, &steps, &wanted, &exact)?;
        let (Some(preference), Some(noise)) = (exact.first(), noise.first()) else { continue };
        if i == 0 {
            (out.reference, out.top) = (Some(preference.best), Some(preference.top.clone()));
        }
        for ((&p, margin), noise) in places.iter().zip(&preference.margins).zip(noise) {
            (margins[p], noises[p]) = (margin.unwrap_or(f64::INFINITY), *noise);
        }
    }
    out.wrong = (0..2).filter(|&p| margins[p] > TIE * noises[p]).collect();
    let ratio = |p: usize| margins[p] / noises[p].max(f64::MIN_POSITIVE);
    let shown = usize::from(ratio(1) > ratio(0));
    out.kind = Some(if out.wrong.is_empty() { TokenKind::TieFlip } else { TokenKind::Divergence });
    (out.margin, out.noise) = (Some(margins[shown]).filter(|m| m.is_finite()), Some(noises[shown]));
    (out.margins, out.noises) = (Some(margins), Some(noises));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of the same exact logits with differences of this size, and a near tie of 3 and 4.
    fn rows(size: f64, lift: f64) -> (Row, Row) {
        let mut state = 3u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let exact: Vec<f64> = (0..2000).map(|_| 4.0 * uniform() - 2.0).collect();
        let mut row = || exact.iter().map(|x| x + size * (2.0 * uniform() - 1.0)).collect::<Vec<f64>>();
        let (mut a, mut b) = (row(), row());
        (a[3], a[4]) = (5.0 + size / 4.0, 5.0);
        (b[3], b[4]) = (5.0, 5.0 + size / 4.0 + lift);
        let roundoff = 0.5f64.powi(24);
        (Row { values: a, roundoff }, Row { values: b, roundoff })
    }

    #[test]
    fn a_near_tie_within_the_difference_of_two_engines_is_a_flip() {
        let (a, b) = rows(0.01, 0.0);
        assert_eq!(by_logits(&a, &b, [3, 4], 0.5f64.powi(9)).kind, Some(TokenKind::TieFlip));
    }

    #[test]
    fn a_difference_at_these_tokens_alone_is_a_divergence() {
        let (a, b) = rows(0.01, 0.5);
        let judged = by_logits(&a, &b, [3, 4], 0.5f64.powi(9));
        assert_eq!(judged.kind, Some(TokenKind::Divergence));
        assert!((judged.margin.unwrap() - 0.505).abs() < 1e-9);
    }

    #[test]
    fn a_difference_everywhere_that_is_too_large_for_rounding_is_not_judged() {
        let (a, b) = rows(0.01, 0.0);
        let judged = by_logits(&a, &b, [3, 4], 0.5f64.powi(24));
        assert_eq!(judged.kind, None);
        assert!(judged.unjudged.unwrap().contains("roundoffs"));
    }

    #[test]
    fn other_vocabularies_are_not_judged() {
        let (a, mut b) = rows(0.01, 0.0);
        b.values.pop();
        assert!(by_logits(&a, &b, [3, 4], 1e-3).unjudged.is_some());
    }
}
