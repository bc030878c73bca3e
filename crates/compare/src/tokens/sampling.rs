//! The sampling parameters that a trace declares, and the choice that follows from them.

use firstdiff_trace::Manifest;
use serde_json::{Map, Value};

use super::chains::Row;

/// How an engine says it chooses tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// Whether tokens are drawn at random.
    pub draws: bool,
    /// Divides the logits.
    pub temperature: f64,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    /// Divides positive logits of tokens that occurred, multiplies negative ones.
    pub repetition: f64,
    pub frequency: f64,
    pub presence: f64,
    /// Over how many of the last tokens penalties count, where the trace says.
    pub last_n: Option<i64>,
    /// Whether the trace says anything.
    pub declared: bool,
    /// The order in which limits are applied, where the trace says.
    pub order: Vec<String>,
    /// A declared setting whose effect on the choice is not computed here.
    pub unknown: Option<String>,
}

/// How penalties count tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// Repetition and presence once for each token that occurred, frequency once for each occurrence.
    Declared,
    /// Repetition and presence once for each occurrence too.
    Occurrences,
    /// Frequency once for each token, however often it occurred.
    Ids,
    /// All penalties one more time.
    Twice,
    /// Repetition divides negative logits too, which favours these tokens.
    Divides,
}

impl Counting {
    /// What engines get wrong.
    pub const WRONG: [Counting; 4] =
        [Counting::Occurrences, Counting::Ids, Counting::Twice, Counting::Divides];

    /// In words, after the penalties' names.
    pub fn words(self) -> &'static str {
        match self {
            Counting::Declared => "is applied as declared",
            Counting::Occurrences => {
                "is applied once for each occurrence of a token, not once for each token"
            }
            Counting::Ids => "is applied once for each token, not once for each occurrence",
            Counting::Twice => "is applied twice",
            Counting::Divides => {
                "divides negative logits too, which favours the tokens that it should hold back"
            }
        }
    }
}

/// Settings that change choices in ways not computed here, with the value that changes nothing.
const UNKNOWN: &[(&str, f64)] = &[
    ("num_beams", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("guidance_scale", 1.0),
    ("mirostat", 0.0),
    ("mirostat_mode", 0.0),
    ("dry_multiplier", 0.0),
    ("xtc_probability", 0.0),
    ("top_n_sigma", -1.0),
    ("dynatemp_range", 0.0),
    ("penalty_alpha", 0.0),
];

/// Settings that are computed with. One that is no number is not guessed at.
const NUMBERS: &[&str] = &[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "penalty_last_n",
    "repeat_last_n",
];

/// llama.cpp's window for penalties where none is set.
const LLAMA_CPP_LAST_N: usize = 64;

impl Sampling {
    /// What `trace.json` declares.
    pub fn new(manifest: &Manifest) -> Sampling {
        let empty = Map::new();
        let given = manifest.sampling.as_ref();
        let map = given.unwrap_or(&empty);
        let number = |key: &str| map.get(key).and_then(Value::as_f64).filter(|x| x.is_finite());
        let either = |a: &str, b: &str| number(a).or_else(|| number(b));
        let flag = map.get("do_sample").and_then(Value::as_bool);
        let temperature = number("temperature");
        let top_k = number("top_k").filter(|k| *k >= 1.0).map(|k| k as usize);
        // Where nothing says whether tokens are drawn, a temperature above 0 does.
        let draws = flag.unwrap_or(temperature.is_some_and(|t| t > 0.0));
        let unread = |key: &&&str| map.get(**key).is_some_and(|v| !v.is_null() && number(key).is_none());
        let unknown = UNKNOWN.iter().find(|(key, neutral)| number(key).is_some_and(|x| x != *neutral));
        let unknown = unknown.map(|(key, _)| key).or_else(|| NUMBERS.iter().find(unread));
        Sampling {
            draws: draws && temperature != Some(0.0) && top_k != Some(1),
            temperature: temperature.filter(|t| *t > 0.0).unwrap_or(1.0),
            top_k,
            top_p: number("top_p").filter(|p| *p < 1.0),
            min_p: number("min_p").filter(|p| *p > 0.0),
            repetition: either("repetition_penalty", "repeat_penalty").filter(|p| *p > 0.0).unwrap_or(1.0),
            frequency: number("frequency_penalty").unwrap_or(0.0),
            presence: number("presence_penalty").unwrap_or(0.0),
            last_n: either("penalty_last_n", "repeat_last_n").map(|n| n as i64),
            declared: given.is_some(),
            order: map.get("order").and_then(Value::as_array).map_or_else(Vec::new, |list| {
                list.iter().filter_map(|name| name.as_str().map(str::to_string)).collect()
            }),
            unknown: unknown.map(|key| (*key).to_string()),
        }
    }

    /// Whether earlier tokens change the logits.
    pub fn penalised(&self) -> bool {
        self.repetition != 1.0 || self.frequency != 0.0 || self.presence != 0.0
    }

    /// The declared penalties, by name and value.
    pub fn penalties(&self) -> String {
        let named = [
            ("repetition_penalty", self.repetition, 1.0),
            ("frequency_penalty", self.frequency, 0.0),
            ("presence_penalty", self.presence, 0.0),
        ];
        let set = named.iter().filter(|(_, value, neutral)| value != neutral);
        set.map(|(name, value, _)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
    }

    /// The tokens that penalties may count: engines differ in whether the prompt belongs to them,
    /// and in how far back they look where the trace does not say.
    pub fn windows<'i>(&self, ids: &'i [i64], prompt: usize) -> Vec<&'i [i64]> {
        let output = &ids[prompt.min(ids.len())..];
        let last = |n: usize| &ids[ids.len().saturating_sub(n)..];
        match self.last_n {
            _ if !self.penalised() => vec![&[]],
            Some(n) if n >= 0 => vec![last(n as usize), &output[output.len().saturating_sub(n as usize)..]],
            Some(_) => vec![ids, output],
            None => vec![ids, output, last(LLAMA_CPP_LAST_N)],
        }
    }

    /// Applies the penalties for the tokens of `window`.
    pub fn penalise(&self, logits: &mut [f64], window: &[i64]) {
        self.penalise_as(Counting::Declared, logits, window);
    }

    fn penalise_as(&self, counting: Counting, logits: &mut [f64], window: &[i64]) {
        let mut tokens = window.to_vec();
        tokens.sort_unstable();
        for run in tokens.chunk_by(|a, b| a == b) {
            let token = run.first().and_then(|t| usize::try_from(*t).ok());
            let Some(logit) = token.and_then(|t| logits.get_mut(t)) else { continue };
            let (times, often) = match counting {
                Counting::Declared | Counting::Divides => (1.0, run.len() as f64),
                Counting::Occurrences => (run.len() as f64, run.len() as f64),
                Counting::Ids => (1.0, 1.0),
                Counting::Twice => (2.0, 2.0 * run.len() as f64),
            };
            let factor = self.repetition.powf(times);
            let divides = *logit > 0.0 || counting == Counting::Divides;
            *logit = if divides { *logit / factor } else { *logit * factor };
            *logit -= self.frequency * often + self.presence * times;
        }
    }

    /// The same without what was applied already.
    pub fn without(&self, temperature: bool, penalties: bool) -> Sampling {
        let mut rest = self.clone();
        if temperature {
            rest.temperature = 1.0;
        }
        if penalties {
            (rest.repetition, rest.frequency, rest.presence) = (1.0, 0.0, 0.0);
        }
        rest
    }

    /// Gives, for each token that penalties count in `window`, what takes them from its logit again.
    pub fn forgive(&self, window: &[i64], mut see: impl FnMut(usize, &dyn Fn(f64) -> f64)) {
        // Engines hold the penalty in float32.
        let factor = f64::from(self.repetition as f32);
        let mut tokens = window.to_vec();
        tokens.sort_unstable();
        for run in tokens.chunk_by(|a, b| a == b) {
            let Some(token) = run.first().and_then(|t| usize::try_from(*t).ok()) else { continue };
            let taken = self.frequency * run.len() as f64 + self.presence;
            see(token, &|x| {
                let before = x + taken;
                if before > 0.0 { before * factor } else { before / factor }
            });
        }
    }

    /// Whether `chosen` is the best of a row once the penalties for `window` are applied.
    pub fn follows(&self, counting: Counting, row: &Row, chosen: i64, window: &[i64]) -> bool {
        let mut scores = row.values.clone();
        self.penalise_as(counting, &mut scores, window);
        let value = usize::try_from(chosen).ok().and_then(|c| scores.get(c)).copied();
        let best = largest(&scores).map(|(_, best)| best);
        // Each of the two was rounded once to the recorded type.
        best.zip(value).is_some_and(|(b, v)| b - v <= row.roundoff * (b.abs() + v.abs()))
    }

    /// The places, among [`Sampling::windows`], of those under which `chosen` follows greedily.
    pub fn explained_by(&self, row: &Row, chosen: i64, windows: &[&[i64]]) -> Vec<usize> {
        let follows = |w: &usize| self.follows(Counting::Declared, row, chosen, windows[*w]);
        (0..windows.len()).filter(follows).collect()
    }

    /// Why `chosen` does not follow greedily from `row`, with the token that would; `None` where it
    /// does. `ids` are all tokens before it, `prompt` of them given.
    pub fn greedy_fault(
        &self,
        row: &Row,
        chosen: i64,
        ids: &[i64],
        prompt: usize,
    ) -> Option<(Option<i64>, String)> {
        let Some(own) = row.get(chosen) else {
            return Some((None, outside(row)));
        };
        let windows = self.windows(ids, prompt);
        if !self.explained_by(row, chosen, &windows).is_empty() {
            return None;
        }
        let mut scores = row.values.clone();
        self.penalise(&mut scores, windows.first().copied().unwrap_or_default());
        let (best, score) = largest(&scores)?;
        let gap = score - usize::try_from(chosen).ok().and_then(|c| scores.get(c)).copied().unwrap_or(own);
        let (plain, _) = largest(&row.values)?;
        let why = if self.penalised() && plain == chosen {
            format!("the declared {} was not applied: without it the choice follows", self.penalties())
        } else if !self.penalised()
            && ids.contains(&plain)
            && best_of_the_new(&row.values, ids) == Some(chosen)
        {
            "it is the best of the tokens that did not occur before: a penalty that trace.json does not \
             declare would explain it"
                .into()
        } else {
            let hint = if self.declared {
                ""
            } else {
                "; if tokens are drawn, declare it as sampling in trace.json"
            };
            format!("its own logits are {gap:.3} in favour of {best}{hint}")
        };
        Some((Some(best), why))
    }
}

/// Why a token without a logit cannot have been chosen.
pub(crate) fn outside(row: &Row) -> String {
    format!(
        "it lies outside the {} logits of the vocabulary: a column of padding, or an index that is no token",
        row.values.len()
    )
}

/// The largest value and its place; the first of equals.
pub(crate) fn largest(row: &[f64]) -> Option<(i64, f64)> {
    let best = row.iter().enumerate().filter(|(_, x)| !x.is_nan());
    best.reduce(|a, b| if b.1 > a.1 { b } else { a }).map(|(i, x)| (i as i64, *x))
}

fn best_of_the_new(row: &[f64], seen: &[i64]) -> Option<i64> {
    let mut left = row.to_vec();
    for token in seen {
        if let Some(x) = usize::try_from(*token).ok().and_then(|t| left.get_mut(t)) {
            *x = f64::NEG_INFINITY;
        }
    }
    largest(&left).map(|(best, _)| best)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn declared(text: &str) -> Sampling {
        let json = format!(r#"{{"format":"firstdiff.trace/1","producer":{{"name":"x"}},"sampling":{text}}}"#);
        Sampling::new(&serde_json::from_str(&json).unwrap())
    }

    fn row(values: &[f64]) -> Row {
        Row { values: values.to_vec(), roundoff: 0.5f64.powi(24) }
    }

    #[test]
    fn drawing_is_told_from_choosing_the_best() {
        for (text, draws) in [
            ("{}", false),
            (r#"{"do_sample":false,"temperature":0.7}"#, false),
            (r#"{"do_sample":true}"#, true),
            (r#"{"temperature":0.7}"#, true),
            (r#"{"temperature":0}"#, false),
            (r#"{"do_sample":true,"top_k":1}"#, false),
        ] {
            assert_eq!(declared(text).draws, draws, "{text}");
        }
        assert_eq!(
            declared(r#"{"no_repeat_ngram_size":3}"#).unknown.as_deref(),
            Some("no_repeat_ngram_size")
        );
        assert_eq!(declared(r#"{"num_beams":1}"#).unknown, None);
    }

    #[test]
    fn the_largest_logit_follows_and_another_does_not() {
        let s = declared("{}");
        assert_eq!(s.greedy_fault(&row(&[1.0, 3.0, 2.0]), 1, &[0], 1), None);
        let (would, why) = s.greedy_fault(&row(&[1.0, 3.0, 2.0]), 2, &[0], 1).unwrap();
        assert_eq!(would, Some(1));
        assert!(why.contains("1.000"), "{why}");
        assert!(s.greedy_fault(&row(&[1.0]), 9, &[0], 1).is_some());
    }

    #[test]
    fn logits_closer_than_their_storage_rounds_are_not_told_apart() {
        let s = declared("{}");
        let coarse = Row { values: vec![10.0, 10.03], roundoff: 0.5f64.powi(8) };
        assert_eq!(s.greedy_fault(&coarse, 0, &[1], 1), None);
        assert!(s.greedy_fault(&row(&[10.0, 10.03]), 0, &[1], 1).is_some());
    }

    #[test]
    fn a_declared_penalty_is_applied_with_its_sign() {
        let s = declared(r#"{"repetition_penalty":2.0}"#);
        // 3.0 / 2 is below 2.0; -1.0 * 2 is below -1.5.
        assert_eq!(s.greedy_fault(&row(&[3.0, 2.0]), 1, &[0], 1), None);
        assert_eq!(s.greedy_fault(&row(&[-1.0, -1.5]), 1, &[0], 1), None);
        let (would, why) = s.greedy_fault(&row(&[3.0, 2.0]), 0, &[0, 0], 0).unwrap();
        assert_eq!(would, Some(1));
        assert_eq!(why, "the declared repetition_penalty 2 was not applied: without it the choice follows");
    }

    #[test]
    fn frequency_counts_and_presence_does_not() {
        let often = declared(r#"{"frequency_penalty":0.6}"#);
        assert!(often.greedy_fault(&row(&[3.0, 2.0]), 0, &[0, 0], 0).is_some());
        assert_eq!(often.greedy_fault(&row(&[3.0, 2.0]), 0, &[0], 0), None);
        let once = declared(r#"{"presence_penalty":0.6}"#);
        assert_eq!(once.greedy_fault(&row(&[3.0, 2.0]), 0, &[0, 0], 0), None);
    }

    #[test]
    fn penalties_that_are_taken_back_leave_the_logits() {
        let s = declared(r#"{"repetition_penalty":1.25,"frequency_penalty":0.5,"presence_penalty":0.125}"#);
        let (before, window) = ([3.0, -2.0, 0.75, 5.0], [0, 1, 0, 2]);
        let mut logits = before.to_vec();
        s.penalise(&mut logits, &window);
        assert_ne!(logits, before);
        s.forgive(&window, |token, undone| logits[token] = undone(logits[token]));
        assert!(before.iter().zip(&logits).all(|(x, y)| (x - y).abs() < 1e-12), "{logits:?}");
    }

    #[test]
    fn ways_to_count_a_token_that_occurred_twice_are_told_apart() {
        let s = declared(r#"{"repetition_penalty":1.5,"frequency_penalty":0.25}"#);
        // Once: 6 / 1.5 - 0.5 = 3.5. Each time: 6 / 2.25 - 0.5 = 2.17. Frequency once: 3.75. Twice: 1.67.
        for (other, kept) in [(3.6, vec![Counting::Ids]), (2.5, vec![Counting::Ids, Counting::Divides])] {
            let row = row(&[6.0, other]);
            let best = |c: &Counting| s.follows(*c, &row, 0, &[0, 0]);
            assert_eq!(Counting::WRONG.into_iter().filter(best).collect::<Vec<_>>(), kept, "{other}");
        }
        let negative = row(&[-3.0, -2.5]);
        assert!(s.follows(Counting::Divides, &negative, 0, &[0]));
        assert!(!s.follows(Counting::Declared, &negative, 0, &[0]));
    }

    #[test]
    fn engines_may_or_may_not_count_the_prompt() {
        let s = declared(r#"{"repetition_penalty":2.0}"#);
        for chosen in [0, 1] {
            assert_eq!(s.greedy_fault(&row(&[3.0, 2.0]), chosen, &[0], 1), None);
        }
        let windowed = declared(r#"{"repetition_penalty":2.0,"penalty_last_n":1}"#);
        assert!(windowed.greedy_fault(&row(&[3.0, 2.0]), 1, &[0, 5], 0).is_some());
    }

    #[test]
    fn a_penalty_that_was_not_declared_is_named() {
        let (_, why) = declared("{}").greedy_fault(&row(&[3.0, 2.0, 1.0]), 1, &[0], 0).unwrap();
        assert!(why.contains("penalty"), "{why}");
    }
}
