//! How the next token is chosen from a row of logits: one definition for every backend.
//!
//! In order, on f32 logits:
//!
//! 1. **Repetition penalty** *r*: the logit of every token that occurs in the prompt or the output so far, counted
//!    once, is divided by *r* where it is positive or zero and multiplied by *r* where it is negative.
//! 2. **Greedy**, where the temperature is 0: the largest logit, the lowest id of equals. Nothing below applies.
//! 3. **Temperature** *T*: a token's weight is exp((logit − largest logit) / *T*), as a whole number of 2⁻⁴⁰ths
//!    ([`weight`]).
//! 4. **Top-k**: the *k* largest logits are kept.
//! 5. **Top-p**: of those, a token is kept where the tokens with larger logits hold less than *p* of their weight.
//! 6. **Min-p**: of those, a token is kept whose weight is at least *p* times the largest.
//! 7. **Draw**: a number below the sum of the weights kept, from the seed and the number of tokens drawn before
//!    ([`bits`]); the token whose range it falls in, ranges laid end to end in the order of ids.
//!
//! Equal logits are kept or dropped together, and the largest is always kept. A logit that is NaN counts as minus
//! infinity.
//!
//! Weights are whole numbers, so their sums are exact in any order: a GPU that adds them in thousands of threads and
//! a loop on a CPU choose the same token from the same logits, bit for bit. For the same reason the exponential is
//! computed by a polynomial written down here, in f64 without fused operations, and nothing depends on a sort.
//!
//! transformers applies the same steps in the same order; where logits are equal at the border of top-p it keeps some
//! of them, by the order of its sort. llama.cpp by default applies top-k, top-p and min-p to the weights at
//! temperature 1 and the temperature last, and its penalty looks back over 64 tokens.

mod choose;
mod limits;
mod options;
mod random;
mod weight;

pub use choose::{Kept, NothingToChoose, Sampler, argmax, keep};
pub use options::{BadOption, SampleOptions};
pub use random::{below, bits};
pub use weight::{ONE, weight};
