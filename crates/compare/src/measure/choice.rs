//! Choices: which experts, which entries. They are right, wrong, or rounding decides.

use firstdiff_model::Axis;
use firstdiff_model::ops::Discrete;
use firstdiff_reference::{Choice, TIE};
use firstdiff_tensor::Tensor;
use serde::Serialize;

use super::{MAX_RATIO, Measured, Part, THRESHOLDS};

/// How a recorded choice differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Choices {
    /// Elements.
    pub of: usize,
    /// Those that the reference would not have chosen.
    pub differing: usize,
    /// Those among them that are nothing which could be chosen, or chosen twice.
    pub invalid: usize,
    /// Rows in which another choice lies within what rounding did to the scores.
    pub ambiguous: usize,
    /// By how many deviations of that the reference prefers its own, at the worst; none where no scores
    /// decide, or the choice is no candidate at all.
    pub preferred_by: Option<f64>,
}

/// What comparing a choice gives.
pub(crate) struct Compared {
    pub measured: Measured,
    /// The recorded choice, with the reference's own where it is invalid.
    pub value: Tensor<f64>,
    /// Rows whose choice is another one, and as good.
    pub ambiguous: Vec<usize>,
}

/// Compares a recorded choice with the reference's, row by row; `recorded` may hold the last rows only.
pub(crate) fn compare(
    recorded: Tensor<f64>,
    exact: &Tensor<f64>,
    from: Option<&Choice>,
    kind: Discrete,
) -> Compared {
    let mut value = recorded;
    let mut counts = Choices { of: value.len(), ..Choices::default() };
    let (mut ambiguous, mut worst) = (vec![], vec![]);
    let skipped = exact.rows().saturating_sub(value.rows());
    let width = value.row_len();
    for row in 0..value.rows() {
        let own = exact.row(row + skipped);
        // An engine that drops what no row can see any more holds the last of a mask.
        let own = own.get(own.len().saturating_sub(width)..).unwrap_or(own);
        let theirs = &mut value.data_mut()[row * width..][..width];
        let judged = match kind {
            Discrete::Set => set(theirs, own, from, row + skipped),
            Discrete::Labels => labels(theirs, own, from, row + skipped),
        };
        counts.differing += judged.differing;
        counts.invalid += judged.invalid;
        if judged.invalid > 0 {
            theirs.copy_from_slice(own);
        }
        if judged.differing > 0 && judged.margin <= TIE {
            ambiguous.push(row);
        }
        if judged.margin.is_finite() && judged.margin > 0.0 {
            counts.preferred_by = Some(counts.preferred_by.unwrap_or(0.0).max(judged.margin));
        }
        // In such units that what is wrong lies above the threshold of any other value.
        worst.push((judged.margin.max(0.0) / TIE * THRESHOLDS.whole).min(MAX_RATIO));
    }
    counts.ambiguous = ambiguous.len();
    let share = counts.differing as f64 / counts.of.max(1) as f64;
    let severity = |r: &f64| (r / THRESHOLDS.whole) as f32;
    let part = Part {
        axis: Axis::Tokens,
        ratios: worst.iter().map(|r| *r as f32).collect(),
        severities: worst.iter().map(severity).collect(),
        failed: vec![],
    };
    let measured = Measured {
        elements: value.len(),
        rel_l2: share,
        max_abs: 0.0,
        cosine: 1.0 - share,
        noise_rel_l2: 0.0,
        ratio: worst.iter().copied().fold(0.0, f64::max),
        scale: 0.0,
        scale_sigmas: 0.0,
        non_finite: 0,
        farther: 0,
        towards_zero: 0.0,
        parts: vec![part],
        choices: Some(counts),
    };
    Compared { measured, value, ambiguous }
}

/// One row.
struct Row {
    differing: usize,
    invalid: usize,
    /// Deviations by which the reference prefers its own: infinite where nothing explains the difference.
    margin: f64,
}

fn set(theirs: &[f64], own: &[f64], from: Option<&Choice>, row: usize) -> Row {
    let number = |x: f64| (x >= 0.0 && x.fract() == 0.0 && x < 1e9).then_some(x as usize);
    let (mut only_theirs, mut invalid, mut empty) = (Vec::new(), 0usize, 0usize);
    for (i, &x) in theirs.iter().enumerate() {
        match number(x) {
            None if x < 0.0 => empty += 1,
            Some(n) if !theirs[..i].contains(&x) && from.is_none_or(|f| n < f.candidates()) => {
                if !own.contains(&x) {
                    only_theirs.push(n);
                }
            }
            _ => invalid += 1,
        }
    }
    let only_own: Vec<usize> =
        own.iter().filter(|x| !theirs.contains(x)).filter_map(|&x| number(x)).collect();
    let missing = empty.abs_diff(own.iter().filter(|x| **x < 0.0).count());
    let differing = (only_theirs.len() + invalid).max(missing);
    let margin = match from {
        _ if differing == 0 => 0.0,
        Some(from) if invalid == 0 && missing == 0 => only_own
            .iter()
            .flat_map(|&a| only_theirs.iter().map(move |&b| from.preference(row, a, b)))
            .fold(0.0, f64::max),
        _ => f64::INFINITY,
    };
    Row { differing, invalid, margin }
}

fn labels(theirs: &[f64], own: &[f64], from: Option<&Choice>, row: usize) -> Row {
    let differing: Vec<usize> = (0..theirs.len()).filter(|&i| theirs.get(i) != own.get(i)).collect();
    let invalid = theirs.iter().filter(|x| !x.is_finite()).count();
    // A mask that follows from a choice which was not recorded may be that of the other choice.
    let possible =
        |&i: &usize| from.is_some_and(|f| f.occurs(row, f.candidates() + i - theirs.len(), theirs[i]));
    let margin = if differing.iter().all(possible) { 0.0 } else { f64::INFINITY };
    Row { differing: differing.len(), invalid, margin }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(recorded: &[f64], own: &[f64]) -> Compared {
        let row = |x: &[f64]| Tensor::new([1, x.len()], x.to_vec()).unwrap();
        compare(row(recorded), &row(own), None, Discrete::Set)
    }

    #[test]
    fn the_order_of_a_set_does_not_matter() {
        assert!(!table(&[3.0, 1.0], &[1.0, 3.0]).measured.is_wrong());
        assert!(!table(&[3.0, -1.0], &[3.0, -1.0]).measured.is_wrong());
    }

    #[test]
    fn another_choice_that_no_scores_decide_is_wrong() {
        assert!(table(&[3.0, 2.0], &[1.0, 3.0]).measured.is_wrong());
        assert!(table(&[3.0, -1.0], &[1.0, 3.0]).measured.is_wrong(), "one too few");
    }

    #[test]
    fn what_is_no_choice_is_counted_and_not_followed() {
        for bad in [[3.0, 3.0], [3.0, 0.5], [3.0, f64::NAN]] {
            let compared = table(&bad, &[1.0, 3.0]);
            assert!(compared.measured.is_wrong());
            assert_eq!(compared.measured.choices.unwrap().invalid, 1, "{bad:?}");
            assert_eq!(compared.value.data(), [1.0, 3.0]);
        }
    }
}
