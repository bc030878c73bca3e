use firstdiff_model::Axis;

use super::view::View;

/// Pairs `(i, i + D/2)` of a head have the right length and the wrong angle.
pub(super) fn test(view: &View) -> Option<String> {
    let [.., Axis::Heads(_), Axis::Channels(dim)] = view.axes else { return None };
    let (dim, half) = (*dim, *dim / 2);
    if half < 2 || !dim.is_multiple_of(2) {
        return None;
    }
    let (mut error, mut floor) = (0.0, 0.0);
    let mut turned = vec![false; half];
    // The right values, turned to the recorded angles.
    let mut model = view.exact.to_vec();
    for first in (0..view.exact.len()).step_by(dim) {
        for (p, turned) in turned.iter_mut().enumerate() {
            let (i, j) = (first + p, first + p + half);
            let length = |x: &[f64]| x[i].hypot(x[j]);
            let (a, b) = (length(view.recorded), length(view.exact));
            if a > 0.0 {
                (model[i], model[j]) = (view.recorded[i] * b / a, view.recorded[j] * b / a);
            }
            let v = view.variance[i] + view.variance[j] + 1e-24 * b * b;
            let apart = (view.recorded[i] - view.exact[i]).hypot(view.recorded[j] - view.exact[j]);
            *turned |= apart * apart > 100.0 * v;
            error += (a - b) * (a - b);
            // The length errs by no more than its two elements together.
            floor += v;
        }
    }
    if !error.is_finite() || error > 4.0 * floor || !turned.contains(&true) {
        return None;
    }
    // One angle is fitted to every two numbers.
    if !view.explains(0..model.len(), |i| model[i], model.len() / 2) {
        return None;
    }
    let pairs = crate::place::list(&turned, &|i| i as i64);
    Some(format!(
        "pairs (i, i + {half}) keep their length and are rotated by another angle (pairs {pairs} of {half}): \
         position, frequency or sign of the rotation"
    ))
}
