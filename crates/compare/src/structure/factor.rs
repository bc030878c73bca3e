use super::view::{Along, View};
use crate::measure::THRESHOLDS;

/// The right value times a factor: one for everything, or one for each token, key, head or channel.
pub(super) fn test(view: &View) -> Option<String> {
    if let Some(&[s]) = fit(view, view.whole()).as_deref() {
        if s == 0.0 || !apart(view, s) || !view.explains(0..view.exact.len(), |i| s * view.exact[i], 1) {
            return None;
        }
        let flipped = if (s + 1.0).abs() < 1e-2 { ": the sign is flipped" } else { "" };
        return Some(format!("every element is {s:.6} times what it should be{flipped}"));
    }
    // The axis that needs the fewest factors comes first.
    let mut axes: Vec<Along> = view.along().filter(|a| a.len() >= 8).collect();
    axes.sort_by_key(|a| a.extent);
    axes.into_iter().find_map(|along| {
        let factors = fit(view, along)?;
        let wrong: Vec<bool> = (0..along.extent).map(|i| is_off(view, along, i)).collect();
        // What is all zero has no factor; another test says it.
        if factors.iter().zip(&wrong).any(|(s, wrong)| *wrong && *s == 0.0) {
            return None;
        }
        let places = || (0..along.extent).filter(|&i| wrong[i]);
        let explained = places().all(|index| {
            let model = |i: usize| factors[index] * view.exact[i];
            view.explains(along.elements(index), model, 1)
        });
        if !explained {
            return None;
        }
        let off = || factors.iter().zip(&wrong).filter(|(_, w)| **w).map(|(s, _)| *s);
        let (low, high) = off().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), s| (l.min(s), h.max(s)));
        let place = crate::place::describe(along.axis, &wrong, &|i| i as i64);
        (low <= high).then(|| {
            if (high - low).abs() <= 0.01 * high.abs() {
                format!("{place}: {:.6} times what it should be", (low + high) / 2.0)
            } else {
                format!("{place}: a factor of its own for each, from {low:.4} to {high:.4}")
            }
        })
    })
}

/// Whether a factor differs from one by more than rounding makes it.
fn apart(view: &View, s: f64) -> bool {
    let (mut square, mut variance) = (0.0, 0.0);
    for i in (0..view.exact.len()).filter(|&i| view.counts(i)) {
        let y = view.exact[i] * view.exact[i];
        square += y;
        variance += view.variance[i] * y + 1e-24 * y * y;
    }
    (s - 1.0).abs() * square > THRESHOLDS.sigmas * variance.sqrt()
}

fn is_off(view: &View, along: Along, index: usize) -> bool {
    view.remainder(along.elements(index), |i| view.exact[i]) > THRESHOLDS.whole
}

/// The least-squares factor of each index, if factors explain the value. Elements that are more
/// precise count for more.
fn fit(view: &View, along: Along) -> Option<Vec<f64>> {
    let mut factors = Vec::with_capacity(along.extent);
    for index in 0..along.extent {
        let (mut dot, mut square) = (0.0, 0.0);
        for i in along.elements(index).filter(|&i| view.counts(i)) {
            dot += view.recorded[i] * view.exact[i];
            square += view.exact[i] * view.exact[i];
        }
        let factor = if square > 0.0 { dot / square } else { 1.0 };
        if view.remainder(along.elements(index), |i| factor * view.exact[i]) > 2.0 * THRESHOLDS.whole {
            return None;
        }
        factors.push(factor);
    }
    Some(factors)
}
