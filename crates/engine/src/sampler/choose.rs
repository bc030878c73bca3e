//! The choice itself.

use std::borrow::Cow;

use super::limits::{Ranked, min_p, top_k, top_p};
use super::options::SampleOptions;
use super::random::{below, bits};
use super::weight::weight;

/// Every logit is NaN or minus infinity, or there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token can be chosen: every logit is NaN or minus infinity")]
pub struct NothingToChoose;

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SampleOptions,
    /// Ids that occurred, each once; empty where nothing is penalised.
    seen: Vec<u32>,
    drawn: u64,
}

impl Sampler {
    /// For a sequence that begins with `prompt`.
    pub fn new(options: SampleOptions, prompt: impl IntoIterator<Item = u32>) -> Sampler {
        let mut this = Sampler { options, seen: vec![], drawn: 0 };
        prompt.into_iter().for_each(|token| this.note(token));
        this
    }

    /// The settings.
    pub fn options(&self) -> &SampleOptions {
        &self.options
    }

    /// Ids that occurred, ascending, where there is a repetition penalty; otherwise none.
    pub fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// How many tokens were chosen: the number of the next draw.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Chooses the next token, and takes it into the sequence.
    ///
    /// # Errors
    /// Where no logit is a number above minus infinity.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, NothingToChoose> {
        let token = pick(&self.penalised(logits), &self.options, self.drawn)?;
        self.chosen(token);
        Ok(token)
    }

    /// Takes in a token that was chosen elsewhere by the same definition.
    pub fn chosen(&mut self, token: u32) {
        self.note(token);
        self.drawn += 1;
    }

    /// The logits after the repetition penalty.
    pub fn penalised<'l>(&self, logits: &'l [f32]) -> Cow<'l, [f32]> {
        let mut logits = Cow::Borrowed(logits);
        let penalty = self.options.repetition_penalty as f32;
        for &token in &self.seen {
            let Some(&logit) = logits.get(token as usize) else { continue };
            logits.to_mut()[token as usize] = if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
        logits
    }

    fn note(&mut self, token: u32) {
        if self.options.repetition_penalty != 1.0
            && let Err(at) = self.seen.binary_search(&token)
        {
            self.seen.insert(at, token);
        }
    }
}

/// Draw number `draw`, or the best token.
fn pick(logits: &[f32], options: &SampleOptions, draw: u64) -> Result<u32, NothingToChoose> {
    let best = argmax(logits).ok_or(NothingToChoose)?;
    if options.temperature == 0.0 {
        return Ok(best as u32);
    }
    let kept = keep(logits, options).ok_or(NothingToChoose)?;
    let mut left = below(kept.total, bits(options.seed, draw));
    for (token, &logit) in logits.iter().enumerate() {
        let weight = kept.weight(logit);
        if left < weight {
            return Ok(token as u32);
        }
        left -= weight;
    }
    Ok(best as u32)
}

/// Place of the largest logit, the first of equals, NaN left out; none where nothing lies above minus infinity.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = (f32::NEG_INFINITY, None);
    for (i, &x) in logits.iter().enumerate() {
        if x > best.0 {
            best = (x, Some(i));
        }
    }
    best.1
}

/// What the limits leave of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// The largest logit.
    pub largest: f32,
    /// The smallest logit that top-k and top-p leave.
    pub smallest: f32,
    /// Sum of the weights left.
    pub total: u64,
    temperature: f64,
    min_p: f64,
}

impl Kept {
    /// The weight of a logit, 0 where it is not kept.
    pub fn weight(&self, logit: f32) -> u64 {
        // Also false for NaN.
        if logit >= self.smallest {
            let weight = weight(logit, self.largest, self.temperature);
            if min_p(weight, self.min_p) {
                return weight;
            }
        }
        0
    }
}

/// Applies top-k, top-p and min-p, in this order, to logits that are penalised already. None where nothing can be
/// chosen. The temperature must be above 0.
pub fn keep(logits: &[f32], options: &SampleOptions) -> Option<Kept> {
    let largest = logits[argmax(logits)?];
    let (temperature, min_p) = (options.temperature, options.min_p);
    let mut kept = Kept { largest, smallest: f32::NEG_INFINITY, total: 0, temperature, min_p: 0.0 };
    let total = |kept: &Kept| logits.iter().map(|&x| kept.weight(x)).sum::<u64>();
    if options.top_k > 0 || options.top_p < 1.0 {
        let mut ranked = Ranked::new(logits.iter().copied());
        kept.smallest = top_k(&mut ranked, options.top_k);
        if options.top_p < 1.0 {
            let sum = total(&kept);
            kept.smallest = top_p(&mut ranked, options.top_p, sum, kept.smallest, largest, temperature);
        }
    }
    kept.min_p = min_p;
    kept.total = total(&kept);
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::ONE;

    fn drawing() -> SampleOptions {
        SampleOptions { temperature: 1.0, ..SampleOptions::default() }
    }

    /// Logits of a lively row: uneven, with equal values among them.
    fn row(len: u64) -> Vec<f32> {
        (0..len).map(|i| ((bits(9, i) >> 54) as f32 / 64.0) - 8.0).collect()
    }

    fn kept(logits: &[f32], options: &SampleOptions) -> Vec<usize> {
        let kept = keep(logits, options).unwrap();
        (0..logits.len()).filter(|&i| kept.weight(logits[i]) > 0).collect()
    }

    /// The definition said again with a full sort and floating-point sums.
    fn kept_plainly(logits: &[f32], o: &SampleOptions) -> Vec<usize> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let w = |i: usize| (f64::from(logits[i] - largest) / o.temperature).exp();
        let mut left: Vec<usize> = (0..logits.len()).collect();
        left.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        if o.top_k > 0 {
            let border = logits[left[(o.top_k as usize).min(left.len()) - 1]];
            left.retain(|i| logits[*i] >= border);
        }
        let total: f64 = left.iter().map(|i| w(*i)).sum();
        let above =
            |i: usize| left.iter().filter(|j| logits[**j] > logits[i]).map(|j| w(*j)).sum::<f64>() / total;
        let mut out: Vec<usize> =
            left.iter().copied().filter(|i| logits[*i] == largest || above(*i) < o.top_p).collect();
        out.retain(|i| w(*i) >= o.min_p);
        out.sort_unstable();
        out
    }

    #[test]
    fn the_kept_set_is_that_of_a_full_sort() {
        for len in [1, 2, 7, 300, 900] {
            let logits = row(len);
            for top_k in [0, 1, 2, 40, 1000] {
                for top_p in [1.0, 0.95, 0.5, 0.013, 0.0] {
                    for (min_p, temperature) in [(0.0, 1.0), (0.02, 0.7), (0.3, 3.1)] {
                        let o = SampleOptions { temperature, top_k, top_p, min_p, ..drawing() };
                        assert_eq!(kept(&logits, &o), kept_plainly(&logits, &o), "{len} {o:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [1.0f32, -0.5, 2.0, 0.25, 2.0, -9.0, 0.0, f32::NAN, f32::NEG_INFINITY];
        let options = SampleOptions { temperature: 0.9, seed: 42, ..drawing() };
        let kept = keep(&logits, &options).unwrap();
        let mut sampler = Sampler::new(options, []);
        let draws = 200_000;
        let mut counts = [0u64; 9];
        (0..draws).for_each(|_| counts[sampler.choose(&logits).unwrap() as usize] += 1);
        let mut chi = 0.0;
        for (i, &count) in counts.iter().enumerate() {
            let expected = draws as f64 * kept.weight(logits[i]) as f64 / kept.total as f64;
            if expected == 0.0 {
                assert_eq!(count, 0, "token {i} has no weight");
            } else {
                chi += (count as f64 - expected).powi(2) / expected;
            }
        }
        // Six degrees of freedom: 33 is exceeded once in 100,000.
        assert!(chi < 33.0, "chi squared {chi}: {counts:?}");
    }

    #[test]
    fn the_same_seed_repeats_and_another_does_not() {
        let logits = row(500);
        let draw = |seed| {
            let mut sampler = Sampler::new(SampleOptions { seed, ..drawing() }, []);
            (0..50).map(|_| sampler.choose(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn the_definition_has_not_moved() {
        // Tokens that a seed gave once are what it gives forever, on every machine.
        let logits = row(2000);
        let options = SampleOptions {
            temperature: 1.3,
            top_k: 400,
            top_p: 0.97,
            min_p: 0.001,
            seed: 12345,
            ..drawing()
        };
        let kept = keep(&logits, &options).unwrap();
        let mut sampler =
            Sampler::new(SampleOptions { repetition_penalty: 1.2, ..options }, [1999, 3, 3, 1_000_000]);
        let tokens: Vec<u32> = (0..8).map(|_| sampler.choose(&logits).unwrap()).collect();
        assert_eq!(kept.total, 151_211_720_303_121);
        assert_eq!(tokens, [28, 895, 266, 1427, 138, 532, 1609, 1558]);
    }

    #[test]
    fn a_repeated_token_is_penalised_once_and_by_its_sign() {
        let options = SampleOptions { repetition_penalty: 2.0, ..SampleOptions::default() };
        let sampler = Sampler::new(options.clone(), [0, 2, 2, 0]);
        assert_eq!(&*sampler.penalised(&[3.0, 1.0, -4.0, 2.0]), [1.5, 1.0, -8.0, 2.0]);
        let mut greedy = Sampler::new(options, []);
        let logits = [3.0, 2.0, 1.0];
        let tokens: Vec<u32> = (0..3).map(|_| greedy.choose(&logits).unwrap()).collect();
        // Its own choices count: 3, then 2 against 1.5, then 1.5 against 1 and 1.
        assert_eq!(tokens, [0, 1, 0]);
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_never_nan() {
        assert_eq!(argmax(&[f32::NAN, 1.0, 2.0, 2.0]), Some(2));
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(Sampler::new(drawing(), []).choose(&[f32::NAN]), Err(NothingToChoose));
        assert_eq!(keep(&[0.0, -0.0], &SampleOptions { top_k: 1, ..drawing() }).unwrap().total, 2 * ONE);
    }
}
