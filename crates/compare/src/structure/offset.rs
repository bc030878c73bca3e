use firstdiff_model::Axis;

use super::view::View;
use crate::measure::THRESHOLDS;
use crate::place;

/// The right value plus a vector that is the same for every token: a bias left out, or added twice.
pub(super) fn test(view: &View) -> Option<String> {
    let tokens = view.along().find(|a| a.axis == Axis::Tokens)?;
    // Fewer tokens than this are fitted by a vector whatever they hold.
    if tokens.extent < 4 || view.remainder(0..view.exact.len(), |i| view.exact[i]) <= THRESHOLDS.whole {
        return None;
    }
    let mut offset = vec![0.0; tokens.len()];
    for t in 0..tokens.extent {
        for (o, i) in offset.iter_mut().zip(tokens.elements(t)) {
            *o += (view.recorded[i] - view.exact[i]) / tokens.extent as f64;
        }
    }
    let fits = |t: usize| {
        let (mut error, mut variance) = (0.0, 0.0);
        for (i, o) in tokens.elements(t).zip(&offset) {
            let e = view.recorded[i] - view.exact[i] - o;
            error += e * e;
            variance += view.variance[i] + 1e-24 * view.exact[i] * view.exact[i];
        }
        error <= 4.0 * variance
    };
    if !offset.iter().all(|o| o.is_finite()) || !(0..tokens.extent).all(fits) {
        return None;
    }
    let mut moved = view.exact.to_vec();
    for t in 0..tokens.extent {
        tokens.elements(t).zip(&offset).for_each(|(i, o)| moved[i] += o);
    }
    if !view.explains(0..moved.len(), |i| moved[i], offset.len()) {
        return None;
    }
    let largest = offset.iter().fold(0.0f64, |m, o| m.max(o.abs()));
    let far: Vec<bool> = offset.iter().map(|o| o.abs() > 1e-3 * largest).collect();
    Some(format!(
        "the same vector is added to every token (largest element {largest:.4}, {}): a bias missing or added twice",
        place::describe(Axis::Channels(far.len()), &far, &|i| i as i64)
    ))
}
