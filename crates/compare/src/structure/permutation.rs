use super::view::{Along, View};
use crate::measure::THRESHOLDS;

/// Multiply-adds one axis may cost: a second or so.
const WORK: usize = 1 << 29;

/// The right values, in other places along one axis: heads permuted, rows shifted, channels swapped.
pub(super) fn test(view: &View) -> Option<String> {
    view.along().find_map(|along| {
        let source = sources(view, along)?;
        Some(format!("{}: {}", along.noun(), in_words(along, &source)))
    })
}

/// For each index, the index whose right value it holds; `None` unless that explains everything and
/// something moved.
fn sources(view: &View, along: Along) -> Option<Vec<usize>> {
    let n = along.extent;
    // An index of very few elements resembles others by chance.
    if along.len() < 4 || n.checked_mul(n)?.checked_mul(along.len())? > WORK {
        return None;
    }
    let rows = |data: &[f64]| -> Vec<Vec<f64>> {
        (0..n).map(|i| along.elements(i).map(|e| data[e]).collect()).collect()
    };
    let (recorded, exact, variance) = (rows(view.recorded), rows(view.exact), rows(view.variance));
    let fits = |i: usize, j: usize| {
        let (mut error, mut floor) = (0.0, 0.0);
        for ((x, y), (v, w)) in recorded[i].iter().zip(&exact[j]).zip(variance[i].iter().zip(&variance[j])) {
            if x.is_finite() {
                error += (x - y) * (x - y);
                floor += v.max(*w) + 1e-24 * y * y;
            }
        }
        // Its own place in another row rounds a little differently.
        error <= (2.0 * THRESHOLDS.whole).powi(2) * floor
    };
    let mut source = Vec::with_capacity(n);
    // Most permutations are shifts: try the last distance first.
    let mut distance = 0i64;
    for i in 0..n {
        let guess = usize::try_from(i as i64 + distance).ok().filter(|&j| j < n);
        let j = [Some(i), guess].into_iter().flatten().chain(0..n).find(|&j| fits(i, j));
        match j {
            Some(j) => {
                distance = j as i64 - i as i64;
                source.push(j);
            }
            // The first or last few may hold something from outside.
            None => source.push(usize::MAX),
        }
    }
    let moved = source.iter().enumerate().filter(|(i, j)| **j != usize::MAX && *i != **j).count();
    let lost = source.iter().filter(|j| **j == usize::MAX).count();
    // Where one value serves for all indices, "moved" says nothing.
    let first = source.iter().find(|j| **j != usize::MAX)?;
    let all_one = n > 2 && source.iter().all(|j| j == first || *j == usize::MAX);
    if moved == 0 || lost > moved || all_one {
        return None;
    }
    let mut model = view.exact.to_vec();
    let mut from_outside = vec![false; model.len()];
    for (i, &j) in source.iter().enumerate() {
        match j {
            usize::MAX => along.elements(i).for_each(|e| from_outside[e] = true),
            j => along.elements(i).zip(along.elements(j)).for_each(|(e, from)| model[e] = view.exact[from]),
        }
    }
    let elements = (0..model.len()).filter(|&e| !from_outside[e]);
    view.explains(elements, |e| model[e], 0).then_some(source)
}

fn in_words(along: Along, source: &[usize]) -> String {
    let what = along.noun();
    let moves: Vec<(usize, usize)> = source
        .iter()
        .enumerate()
        .filter(|(i, j)| *i != **j && **j != usize::MAX)
        .map(|(i, &j)| (i, j))
        .collect();
    let n = source.len();
    let distance = |(i, j): (usize, usize)| j as i64 - i as i64;
    let d = distance(moves[0]);
    if moves.iter().all(|&m| distance(m) == d) {
        if moves.len() == 1 {
            return format!("{what} {} holds what belongs to {what} {}", moves[0].0, moves[0].1);
        }
        let to = if d < 0 { "before" } else { "after" };
        let (first, last) = (moves[0].0, moves[moves.len() - 1].0);
        return format!("{what}s {first}..{last} hold what belongs {} {to} them", d.abs());
    }
    if moves.iter().all(|&m| distance(m).rem_euclid(n as i64) == d.rem_euclid(n as i64)) {
        return format!("all {what}s are rotated by {}", d.rem_euclid(n as i64));
    }
    if n.is_multiple_of(2) && (0..n).all(|i| source[i] == i / 2 + (i % 2) * (n / 2)) {
        return format!("the two halves of the {what}s are interleaved");
    }
    if n.is_multiple_of(2) && (0..n).all(|i| source[i] == 2 * (i % (n / 2)) + i / (n / 2)) {
        return format!("even and odd {what}s are split into two halves");
    }
    if (0..n).all(|i| source[i] == n - 1 - i) {
        return format!("the {what}s are reversed");
    }
    let shown: Vec<String> = moves.iter().take(6).map(|(i, j)| format!("{i} holds {j}")).collect();
    let more = if moves.len() > 6 { ", …" } else { "" };
    format!("{} of {n} hold another one's value ({}{more})", moves.len(), shown.join(", "))
}
