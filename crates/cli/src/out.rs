//! Results on stdout.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Prints a result for people. Names in traces and models may hold anything: characters that would control the
/// terminal are shown, not sent.
///
/// # Errors
/// When stdout cannot be written, other than because its reader left.
pub fn text(result: &str) -> Result<()> {
    raw(&printable(result))
}

/// Prints a result for programs.
///
/// # Errors
/// As [`text`].
pub fn json(result: &Value) -> Result<()> {
    raw(&format!("{result:#}\n"))
}

/// Prints as it is.
///
/// # Errors
/// As [`text`].
pub fn raw(result: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(result.as_bytes()).and_then(|()| stdout.flush()) {
        // `firstdiff … | head` has seen what it wanted; the exit code stays the verdict's.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to stdout"),
    }
}

/// With control characters escaped, line ends and tabs excepted.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_control_a_terminal_is_shown_instead() {
        assert_eq!(printable("a\u{1b}[31m\u{7}\n\té▁"), "a\\u{1b}[31m\\u{7}\n\té▁");
    }
}
