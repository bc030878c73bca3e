use super::view::{Along, View};
use crate::place;

/// Tokens, keys or heads that are all zero, or that repeat another one's recorded value bit for bit
/// where the right values differ: memory nobody wrote, or wrote too early.
pub(super) fn test(view: &View) -> Option<String> {
    view.along().find_map(|along| zeros(view, along).or_else(|| repeats(view, along)))
}

fn zeros(view: &View, along: Along) -> Option<String> {
    let zero = |i: usize| {
        along.elements(i).all(|e| view.recorded[e] == 0.0) && along.elements(i).any(|e| view.exact[e] != 0.0)
    };
    let wrong: Vec<bool> = (0..along.extent).map(zero).collect();
    explained(view, along, &wrong).then(|| {
        format!(
            "{}: all zero where the right value is not",
            place::describe(along.axis, &wrong, &|i| i as i64)
        )
    })
}

/// Compared with the neighbour before: what stale memory repeats.
fn repeats(view: &View, along: Along) -> Option<String> {
    if along.len() < 4 {
        return None;
    }
    let same = |data: &[f64], i: usize| {
        along.elements(i).zip(along.elements(i - 1)).all(|(a, b)| data[a].to_bits() == data[b].to_bits())
    };
    let repeated = |i: usize| i > 0 && same(view.recorded, i) && !same(view.exact, i);
    let wrong: Vec<bool> = (0..along.extent).map(repeated).collect();
    explained(view, along, &wrong).then(|| {
        let place = place::describe(along.axis, &wrong, &|i| i as i64);
        format!("{place}: a copy of the {} before, bit for bit", along.noun())
    })
}

/// Whether most of the error is at these indices.
fn explained(view: &View, along: Along, wrong: &[bool]) -> bool {
    let mut model = view.exact.to_vec();
    for index in (0..along.extent).filter(|&i| wrong[i]) {
        along.elements(index).for_each(|e| model[e] = view.recorded[e]);
    }
    wrong.contains(&true) && view.explains(0..model.len(), |e| model[e], 0)
}
