//! Places in words: which tokens, keys, heads and channels.

use firstdiff_model::Axis;

/// What one index of an axis is called.
pub(crate) fn noun(axis: Axis) -> &'static str {
    match axis {
        Axis::Tokens => "token",
        Axis::Keys => "key",
        Axis::Heads(_) => "head",
        Axis::Channels(_) => "channel",
        Axis::Choices(_) => "choice",
        Axis::Entries(_) | Axis::NewEntries(_) => "entry",
        Axis::Candidates(_) => "candidate",
    }
}

/// `all heads`, `head 3 of 9`, `tokens 1..31; token 0 agrees`, `every 4th channel from 1`.
pub(crate) fn describe(axis: Axis, wrong: &[bool], number: &dyn Fn(usize) -> i64) -> String {
    let what = noun(axis);
    let count = wrong.iter().filter(|w| **w).count();
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let bad = list(wrong, number);
    match count {
        0 => format!("no {what} alone"),
        n if n == wrong.len() && n == 1 => format!("{what} {bad}"),
        n if n == wrong.len() => format!("all {what}s"),
        n if n > 1 && wrong.len() - n <= 3 => {
            let good = list(&wrong.iter().map(|w| !w).collect::<Vec<_>>(), number);
            let agree = if wrong.len() - n == 1 { "agrees" } else { "agree" };
            format!("{what}s {bad}; {what}{} {good} {agree}", plural(wrong.len() - n))
        }
        n => match period(wrong) {
            Some((period, first)) => format!("every {} {what} from {}", ordinal(period), number(first)),
            None => format!("{what}{} {bad} of {}", plural(n), wrong.len()),
        },
    }
}

/// The distance and start of wrong indices that are evenly spaced: four of them at least, and up to
/// the end.
pub(crate) fn period(wrong: &[bool]) -> Option<(usize, usize)> {
    let at: Vec<usize> = (0..wrong.len()).filter(|&i| wrong[i]).collect();
    let (first, second) = (*at.first()?, *at.get(1)?);
    let period = second - first;
    let evenly = at.windows(2).all(|w| w[1] - w[0] == period);
    let whole = first < period && wrong.len() - at[at.len() - 1] <= period;
    (period > 1 && at.len() >= 4 && evenly && whole).then_some((period, first))
}

pub(crate) fn ordinal(n: usize) -> String {
    match n {
        2 => "2nd".into(),
        3 => "3rd".into(),
        n => format!("{n}th"),
    }
}

/// `1..3, 7`: runs of consecutive numbers; long lists are cut.
pub(crate) fn list(wrong: &[bool], number: &dyn Fn(usize) -> i64) -> String {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for n in wrong.iter().enumerate().filter(|(_, w)| **w).map(|(i, _)| number(i)) {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => runs.push((n, n)),
        }
    }
    let shown: Vec<String> =
        runs.iter().take(6).map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}..{b}") }).collect();
    let more = if runs.len() > 6 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_like_sentences() {
        let id = |i: usize| i as i64;
        let say = |axis, wrong: &[bool]| describe(axis, wrong, &id);
        assert_eq!(say(Axis::Tokens, &[false, true, true]), "tokens 1..2; token 0 agrees");
        assert_eq!(say(Axis::Heads(2), &[true, true]), "all heads");
        assert_eq!(say(Axis::Heads(5), &[false, false, false, true, false]), "head 3 of 5");
        assert_eq!(describe(Axis::Tokens, &[true], &|_| 41), "token 41");
    }

    #[test]
    fn evenly_spaced_places_are_said_to_be() {
        let wrong: Vec<bool> = (0..16).map(|i| i % 4 == 1).collect();
        assert_eq!(describe(Axis::Channels(16), &wrong, &|i| i as i64), "every 4th channel from 1");
        let three: Vec<bool> = (0..12).map(|i| i % 4 == 1).collect();
        assert_eq!(period(&three), None, "three may be chance");
        let stops: Vec<bool> = (0..32).map(|i| i % 4 == 1 && i < 16).collect();
        assert_eq!(period(&stops), None);
    }
}
