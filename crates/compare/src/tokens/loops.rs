//! Output that ends by repeating itself.

use std::collections::BTreeMap;

use serde::Serialize;

/// A block of tokens repeated to the end of the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loop {
    /// `a`, `b`, or `engine`.
    pub side: String,
    /// The sequence of a batch.
    pub sequence: i64,
    /// Where the repetition begins, in generated tokens from 0.
    pub start: usize,
    /// Tokens of the block.
    pub period: usize,
    /// Times the block stands there in full.
    pub repeats: usize,
    /// Whose loop it is: `model` where the reference loops as well, `engine` where it would not.
    pub whose: Option<String>,
    /// The block's text, with a model.
    pub text: Option<String>,
}

/// How improbable a repetition must be by chance.
const CHANCE: f64 = 1e-6;
/// A block said twice is emphasis.
const MIN_REPEATS: usize = 3;

/// The repetition that `tokens` end in, as start, period and repeats.
///
/// It counts when it has at least three blocks and when tokens drawn independently, with the
/// diversity of those before it, would show it with a chance below 10^-6: `m` tokens that each
/// equal the one a period before, for any of the periods tried.
pub(crate) fn find(tokens: &[i64]) -> Option<(usize, usize, usize)> {
    let longest = tokens.len() / MIN_REPEATS;
    (1..=longest).find_map(|period| {
        let matches = (period..tokens.len()).rev().take_while(|&i| tokens[i] == tokens[i - period]).count();
        let start = tokens.len() - matches - period;
        let repeats = (matches + period) / period;
        let chance = longest as f64 * collision(&tokens[..start + period]).powf(matches as f64);
        (repeats >= MIN_REPEATS && chance < CHANCE).then_some((start, period, repeats))
    })
}

/// The chance that two tokens are equal, by Laplace's rule of succession over the pairs seen: a
/// few tokens do not make equality impossible, and one token alone leaves it at one half.
pub(crate) fn collision(tokens: &[i64]) -> f64 {
    let mut counts: BTreeMap<i64, f64> = BTreeMap::new();
    for token in tokens {
        *counts.entry(*token).or_default() += 1.0;
    }
    let pairs = |n: f64| n * (n - 1.0) / 2.0;
    let equal: f64 = counts.values().map(|&n| pairs(n)).sum();
    (equal + 1.0) / (pairs(tokens.len() as f64) + 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_repeated_to_the_end_is_a_loop() {
        let mut tokens: Vec<i64> = (100..120).collect();
        tokens.extend([1, 2, 3, 4].repeat(4));
        tokens.extend([1, 2]);
        assert_eq!(find(&tokens), Some((20, 4, 4)));
    }

    #[test]
    fn one_token_for_ever_is_a_loop_even_without_anything_before_it() {
        assert_eq!(find(&[7; 60]), Some((0, 1, 60)));
    }

    #[test]
    fn a_block_said_twice_or_a_short_run_is_none() {
        let text: Vec<i64> = (0..40).collect();
        let with = |end: &[i64]| [&text[..], end].concat();
        assert_eq!(find(&with(&[50, 51, 52, 53, 50, 51, 52, 53])), None);
        assert_eq!(find(&with(&[9, 9, 9])), None);
        assert_eq!(find(&[5; 8]), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn a_loop_that_was_left_again_is_none() {
        let mut tokens = [1, 2, 3].repeat(8);
        tokens.extend([40, 41, 42, 43]);
        assert_eq!(find(&tokens), None);
    }

    #[test]
    fn coins_are_no_loop() {
        // Two tokens at random: runs of a few matches are to be expected.
        let mut state = 1u64;
        let mut coin = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 60) as i64 & 1
        };
        for _ in 0..200 {
            let tokens: Vec<i64> = (0..60).map(|_| coin()).collect();
            assert_eq!(find(&tokens), None, "{tokens:?}");
        }
    }
}
