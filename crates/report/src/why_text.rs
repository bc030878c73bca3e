//! Why a value is wrong: the tests it failed.

use firstdiff_compare::{Test, Why};

use crate::number::short;

/// Parts that are listed where no test of the whole tensor failed.
const PARTS: usize = 3;

/// Which tests failed, with figures and limits: the first that the whole tensor did, else the worst parts.
pub(crate) fn why(why: &[Why]) -> Option<String> {
    let first = why.first()?;
    match (first.test, first.axis) {
        // Another line says these.
        (Test::NotFinite | Test::Selection, _) => None,
        // A large error has factors and wrong parts besides, which say no more.
        (_, None) => Some(reason(first)),
        (_, Some(_)) => Some(why.iter().take(PARTS).map(reason).collect::<Vec<_>>().join("; ")),
    }
}

/// `token 10 alone: 5.2 times the noise floor (limit 4)`.
fn reason(w: &Why) -> String {
    let place = match (w.axis, w.index) {
        (Some(axis), Some(index)) => format!("{axis} {index} alone: "),
        _ => String::new(),
    };
    let (value, limit) = (short(w.value), w.limit);
    let sigmas = format!("{value} standard deviations (limit {limit})");
    match w.test {
        Test::NoiseFloor => format!("{place}{value} times the noise floor (limit {limit})"),
        Test::Factor => format!("{place}common factor {}, {sigmas}", factor(w.factor.unwrap_or(1.0))),
        Test::Offset => format!("{place}common offset, {sigmas}"),
        Test::NotFinite => format!("{place}{value} elements are not finite"),
        Test::Nearest => {
            format!("{:.0} elements are not the nearest number of the cache's format (limit 0)", w.value)
        }
        Test::Selection => format!("{place}{sigmas}"),
    }
}

/// Three digits of how far a factor is from one.
fn factor(x: f64) -> String {
    let digits = match (x - 1.0).abs() {
        d if d > 0.0 && d < 0.1 => (2.0 - d.log10()).ceil().clamp(4.0, 12.0) as usize,
        _ => 4,
    };
    format!("{x:.digits$}")
}
