//! Causes of findings: what is named, what explains one without being named, what came nearest.

use firstdiff_compare::{Because, Cause, Finding, Rejected, Unnamed};

use crate::check_text::line;
use crate::number::short;

/// What leaves more than this part of the error is no help.
const NEAREST: f64 = 0.1;

/// The cause and what speaks for it, what explains the finding and is not named, or what came nearest.
pub(crate) fn cause(out: &mut String, f: &Finding, complete: bool) -> std::fmt::Result {
    if let Some(cause) = &f.cause {
        return named(out, f, cause);
    }
    if let Some(unnamed) = &f.unnamed {
        line(out, "  cause", &format!("not named: {}", explained(f, unnamed)))?;
        if let Some(tap) = &unnamed.separate {
            line(out, "  separate", &format!("record {tap}: there they differ"))?;
        }
        return Ok(());
    }
    let known = if complete { "not known" } else { "not known so far" };
    line(out, "  cause", &format!("{known}: nothing tried explains it"))?;
    match f.rejected.first().filter(|r| r.residual <= NEAREST * f.residual) {
        Some(r) => line(
            out,
            "  nearest",
            &format!("{} ({}) leaves {} times the noise floor", r.id, r.detail, short(r.residual)),
        ),
        None => Ok(()),
    }
}

/// What explains a finding, and why it is not named.
fn explained(f: &Finding, unnamed: &Unnamed) -> String {
    let hypothesis = |r: &Rejected| format!("{} ({})", r.id, r.detail);
    let best = &unnamed.explains;
    let left = format!("({} times the noise floor remains, limit 2)", short(best.residual));
    let explains = match unnamed.equal.first() {
        Some(other) => format!("{} and {} both explain it {left}", hypothesis(best), hypothesis(other)),
        None => format!("{} explains it {left}", hypothesis(best)),
    };
    match (unnamed.because, &unnamed.rival) {
        (Because::Rival, Some(rival)) => format!(
            "{explains}, but {} leaves only {}; not told apart",
            hypothesis(rival),
            short(rival.residual)
        ),
        (Because::Rival | Because::Small, _) => {
            format!("{explains}, but the error itself is only {}", short(f.residual))
        }
        (Because::Unverified, _) => {
            format!("{explains} at {}, step {}; the budget did not reach its other places", f.tap, f.step)
        }
    }
}

fn named(out: &mut String, f: &Finding, cause: &Cause) -> std::fmt::Result {
    line(out, "  cause", &format!("{}: {}", cause.id, cause.detail))?;
    // Where a part gave it away, the unit is that test's.
    let before = if f.ratio > 2.0 { f.ratio } else { f.residual };
    line(
        out,
        "  evidence",
        &format!(
            "with this change the error drops from {} to {} times the noise floor (limit 2)",
            short(before),
            short(cause.residual)
        ),
    )?;
    if let Some(e) = &cause.element {
        let index: Vec<String> = e.index.iter().map(ToString::to_string).collect();
        line(
            out,
            "  for example",
            &format!(
                "{}[{}]: engine {}, model {}, with this change {}",
                e.tap,
                index.join(","),
                short(e.engine),
                short(e.exact),
                short(e.hypothesis)
            ),
        )?;
    }
    for other in &cause.equal {
        line(out, "  or", &format!("{}: {}; it predicts the same", other.id, other.detail))?;
    }
    if let Some(tap) = &cause.separate {
        line(out, "  separate", &format!("record {tap}: there they differ"))?;
    }
    if let Some(r) = f.rejected.first() {
        line(
            out,
            "  ruled out",
            &format!("{} ({}), {} times the noise floor remains", r.id, r.detail, short(r.residual)),
        )?;
    }
    Ok(())
}
