//! Wording and layout of results: pure functions from a result to text. Results are data; what is
//! said about them is said here and nowhere else.

mod beside_text;
mod cause_text;
mod check_text;
mod diff_text;
mod explain_text;
mod inspect_text;
pub mod json;
mod number;
mod tokens_text;
mod why_text;

#[cfg(test)]
mod finding_tests;

pub use beside_text::beside_text;
pub use check_text::{check_text, first_verdict, interrupted, unloaded};
pub use diff_text::diff_text;
pub use explain_text::{explain_list, hypotheses_page};
pub use inspect_text::inspect_text;
pub use number::{bytes, count, short};
pub use tokens_text::tokens_text;
