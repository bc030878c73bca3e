//! Tokens drawn at random: those that the declared limits leave, and how surprising all of them are.

use super::chains::Row;
use super::sampling::{Sampling, outside};

/// Chance below which draws are not believed to come from the declared distribution.
const CHANCE: f64 = 1e-9;
/// Powers at which the bound is taken: each is valid, the best counts.
const POWERS: [f64; 6] = [-0.25, -0.5, -0.75, 1.0, 4.0, 16.0];

/// What the declared limits leave of one row, and the drawn token's place in it.
struct Support {
    /// Why the token is outside; `None` where it is inside.
    outside: Option<String>,
    /// Natural logarithms of the probabilities of the tokens left.
    left: Vec<f64>,
    /// That of the drawn one.
    own: f64,
}

/// In which order limits are applied.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Order {
    /// transformers divides by the temperature before the limits are applied, llama.cpp after.
    temperature_first: bool,
    /// Most engines take top_p of what top_k leaves, with probabilities that sum to 1 again; others, such as
    /// SGLang, take both of all tokens.
    k_first: bool,
}

impl Order {
    /// Those that differ, and that the declared order permits.
    fn all(s: &Sampling) -> Vec<Order> {
        let at = |names: &[&str]| s.order.iter().position(|o| names.contains(&o.as_str()));
        let temperature = at(&["temperature", "temp"]);
        let limits = [at(&["top_k"]), at(&["top_p"]), at(&["min_p"])];
        let first_limit = limits.iter().flatten().min().copied();
        let said = |before: Option<usize>, after: Option<usize>, matters: bool| match (before, after) {
            _ if !matters => vec![true],
            (Some(before), Some(after)) => vec![before < after],
            _ => vec![true, false],
        };
        let limited = s.top_p.is_some() || s.min_p.is_some();
        let temperatures = said(temperature, first_limit, limited && s.temperature != 1.0);
        let ks = said(limits[0], limits[1], s.top_k.is_some() && s.top_p.is_some());
        let pairs = temperatures.iter().flat_map(|t| ks.iter().map(move |k| (*t, *k)));
        pairs.map(|(temperature_first, k_first)| Order { temperature_first, k_first }).collect()
    }
}

fn support(s: &Sampling, scores: &[f64], chosen: usize, roundoff: f64, order: Order) -> Support {
    let mut sorted: Vec<f64> = scores.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let own = scores.get(chosen).copied().unwrap_or(f64::NEG_INFINITY);
    let best = sorted.first().copied().unwrap_or(0.0);
    let scale = if order.temperature_first { s.temperature } else { 1.0 };
    // Both logits compared were rounded to the recorded type.
    let slack = 2.0 * roundoff * best.abs().max(own.abs());
    let better = sorted.partition_point(|x| *x > own + slack);
    let mut outside = (own == f64::NEG_INFINITY).then(|| "its logit is minus infinity".to_string());
    let most = s.top_k.unwrap_or(usize::MAX);
    if better >= most {
        outside.get_or_insert(format!("top_k {most} leaves it out: {better} are better"));
    }
    if order.k_first {
        sorted.truncate(most);
    }
    let weights =
        |scale: f64, of: &[f64]| -> Vec<f64> { of.iter().map(|x| ((x - best) / scale).exp()).collect() };
    if let Some(p) = s.top_p {
        let w = weights(scale, &sorted);
        let total: f64 = w.iter().sum();
        let above: f64 = w.iter().take(better).sum::<f64>() / total;
        // Rounded logits move each probability by this factor, and a sum in f32 adds one a term.
        let factor = 1.0 - slack / scale - w.len() as f64 * 0.5f64.powi(24);
        if above * factor.max(0.0) >= p {
            outside.get_or_insert(format!("top_p {p} leaves it out: better ones hold {above:.4}"));
        }
        let mut sum = 0.0;
        let keep = w.iter().take_while(|x| {
            let before = sum;
            sum += **x / total;
            before < p
        });
        let keep = keep.count().max(1);
        sorted.truncate(keep);
    }
    sorted.truncate(most);
    if let Some(p) = s.min_p {
        let least = best + scale * p.ln();
        if own < least - slack {
            let ratio = ((own - best) / scale).exp();
            outside.get_or_insert(format!(
                "min_p {p} leaves it out: it has {ratio:.2e} of the best one's probability"
            ));
        }
        sorted.retain(|x| *x >= least);
    }
    let total = weights(s.temperature, &sorted).iter().sum::<f64>().ln();
    let log = |x: f64| (x - best) / s.temperature - total;
    Support { outside, left: sorted.iter().map(|x| log(*x)).collect(), own: log(own) }
}

/// One way in which an engine may apply what is declared, and the evidence against it.
struct Way {
    window: usize,
    order: Order,
    /// For each power, the logarithm of a variable whose expectation is 1.
    evidence: [f64; POWERS.len()],
    /// Whether this way has explained every draw.
    possible: bool,
}

/// All draws of a sequence against the declared sampling.
pub(crate) struct Draws<'s> {
    sampling: &'s Sampling,
    ways: Vec<Way>,
    count: usize,
    /// Draws that one way or another permits.
    permitted: usize,
}

impl<'s> Draws<'s> {
    pub fn new(sampling: &'s Sampling) -> Draws<'s> {
        let windows = sampling.windows(&[], 0).len();
        let orders = Order::all(sampling);
        let way = |window, order| Way { window, order, evidence: [0.0; POWERS.len()], possible: true };
        let ways = (0..windows).flat_map(|w| orders.iter().map(move |o| way(w, *o))).collect();
        Draws { sampling, ways, count: 0, permitted: 0 }
    }

    /// Takes in one draw; why it cannot have been drawn, whichever way the limits are applied.
    pub fn fault(&mut self, row: &Row, chosen: i64, ids: &[i64], prompt: usize) -> Option<String> {
        let Some(chosen) = usize::try_from(chosen).ok().filter(|c| *c < row.values.len()) else {
            return Some(outside(row));
        };
        self.count += 1;
        let mut fault = None;
        let mut permitted = false;
        for (w, window) in self.sampling.windows(ids, prompt).into_iter().enumerate() {
            let mut scores = row.values.clone();
            self.sampling.penalise(&mut scores, window);
            for way in self.ways.iter_mut().filter(|way| way.window == w) {
                let support = support(self.sampling, &scores, chosen, row.roundoff, way.order);
                match support.outside {
                    Some(why) => {
                        way.possible = false;
                        fault.get_or_insert(why);
                    }
                    None => {
                        permitted = true;
                        for (power, evidence) in POWERS.iter().zip(&mut way.evidence) {
                            let mean: f64 = support.left.iter().map(|l| ((1.0 + power) * l).exp()).sum();
                            *evidence += power * support.own - mean.ln();
                        }
                    }
                }
            }
        }
        self.permitted += usize::from(permitted);
        fault.filter(|_| !permitted)
    }

    /// The order that the draws show, where several are possible and the trace does not say.
    pub fn note(&self) -> Option<String> {
        let possible: Vec<&Way> = self.ways.iter().filter(|w| w.possible).collect();
        if possible.is_empty() {
            let text =
                "each draw is permitted in some order of the declared limits, but no one order permits all";
            return (self.count > 0 && self.permitted == self.count).then(|| text.into());
        }
        let shows = |of: fn(Order) -> bool| {
            let first = of(possible[0].order);
            let open = self.ways.iter().any(|w| of(w.order) != first);
            (open && possible.iter().all(|w| of(w.order) == first)).then_some(first)
        };
        let k = shows(|o| o.k_first).map(|first| match first {
            true => "top_p was taken of what top_k leaves, not of all tokens",
            false => "top_p was taken of all tokens, not of what top_k leaves",
        });
        let temperature = shows(|o| o.temperature_first).map(|first| match first {
            true => "the temperature was applied before the limits",
            false => "the temperature was applied after the limits",
        });
        let said: Vec<&str> = [k, temperature].into_iter().flatten().collect();
        (!said.is_empty())
            .then(|| format!("the draws fit one order only: {}; declare sampling.order", said.join(", ")))
    }

    /// Why all draws together are not believed.
    ///
    /// For a draw with probability `p` the expectation of `p^k` is the sum of `p^(1+k)` over what
    /// could be drawn. So the product over all draws of `p^k` divided by that sum has expectation 1
    /// and by Markov's inequality exceeds `1/c` with a chance of at most `c`, whatever the model.
    /// Powers below 0 find draws that are too improbable, powers above 0 such that are too certain.
    pub fn surprise(&self) -> Option<String> {
        let most = |way: &Way| -> (f64, f64) {
            let evidence = way.evidence.iter().zip(POWERS);
            evidence.fold((f64::NEG_INFINITY, 0.0), |a, (e, p)| if *e > a.0 { (*e, p) } else { a })
        };
        let possible = self.ways.iter().filter(|w| w.possible);
        let (evidence, power) = possible.map(most).reduce(|a, b| if b.0 < a.0 { b } else { a })?;
        let chance = (-evidence).exp() * POWERS.len() as f64;
        (chance < CHANCE).then(|| {
            let how = if power < 0.0 { "too improbable" } else { "too near to always the best" };
            format!(
                "{} draws are together {how} for the declared sampling (temperature {}): a chance below {chance:.0e}",
                self.count, self.sampling.temperature
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(text: &str) -> Sampling {
        let json = format!(r#"{{"format":"firstdiff.trace/1","producer":{{"name":"x"}},"sampling":{text}}}"#);
        Sampling::new(&serde_json::from_str(&json).unwrap())
    }

    fn row(values: Vec<f64>) -> Row {
        Row { values, roundoff: 0.5f64.powi(24) }
    }

    fn fault(text: &str, values: &[f64], chosen: i64) -> Option<String> {
        Draws::new(&declared(text)).fault(&row(values.to_vec()), chosen, &[0], 1)
    }

    #[test]
    fn each_limit_leaves_out_what_it_should() {
        let logits = [0.0, 3.0, 2.0, 1.0];
        assert_eq!(fault(r#"{"do_sample":true,"top_k":2}"#, &logits, 2), None);
        assert!(fault(r#"{"do_sample":true,"top_k":2}"#, &logits, 3).unwrap().starts_with("top_k 2"));
        // Probabilities 0.644, 0.237, 0.087, 0.032.
        assert_eq!(fault(r#"{"do_sample":true,"top_p":0.9}"#, &logits, 3), None);
        assert!(fault(r#"{"do_sample":true,"top_p":0.85}"#, &logits, 3).unwrap().starts_with("top_p 0.85"));
        assert_eq!(fault(r#"{"do_sample":true,"min_p":0.3}"#, &logits, 2), None);
        assert!(fault(r#"{"do_sample":true,"min_p":0.3}"#, &logits, 3).unwrap().starts_with("min_p 0.3"));
    }

    #[test]
    fn a_limit_counts_as_kept_in_either_order_of_engines() {
        // At temperature 4 the better two hold less than 0.7; at 1 they hold more.
        let text = r#"{"do_sample":true,"temperature":4.0,"top_p":0.7}"#;
        assert_eq!(fault(text, &[0.0, 3.0, 2.0, 1.0], 3), None);
        assert!(fault(r#"{"do_sample":true,"top_p":0.7}"#, &[0.0, 3.0, 2.0, 1.0], 3).is_some());
    }

    #[test]
    fn top_p_may_count_all_tokens_or_those_that_top_k_leaves() {
        // Probabilities 0.644, 0.237, 0.087, 0.032: the first two hold 0.881 of all, 0.911 of the best three.
        let logits = [0.0, 3.0, 2.0, 1.0];
        let judge = |order: &str| {
            let s = declared(&format!(r#"{{"do_sample":true,"top_k":3,"top_p":0.9{order}}}"#));
            let mut draws = Draws::new(&s);
            let fault = draws.fault(&row(logits.to_vec()), 3, &[0], 1);
            (fault.is_some(), draws.note())
        };
        let (wrong, note) = judge("");
        assert!(!wrong && note.unwrap().contains("top_p was taken of all tokens"));
        assert_eq!(judge(r#","order":["top_p","top_k"]"#), (false, None));
        assert_eq!(judge(r#","order":["top_k","top_p"]"#), (true, None));
    }

    /// Draws 400 tokens from 32 at one temperature and judges them at another.
    fn drawn(at: f64, declared_as: f64) -> Option<String> {
        let s = declared(&format!(r#"{{"do_sample":true,"temperature":{declared_as}}}"#));
        let mut draws = Draws::new(&s);
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        for _ in 0..400 {
            let values: Vec<f64> = (0..32).map(|_| 6.0 * uniform()).collect();
            let weights: Vec<f64> = values.iter().map(|x| (x / at).exp()).collect();
            let mut left = uniform() * weights.iter().sum::<f64>();
            let chosen = weights.iter().position(|w| {
                left -= w;
                left < 0.0
            });
            assert_eq!(draws.fault(&row(values), chosen.unwrap_or(0) as i64, &[0], 1), None);
        }
        draws.surprise()
    }

    #[test]
    fn draws_at_the_declared_temperature_are_believed_and_others_are_not() {
        assert_eq!(drawn(0.8, 0.8), None);
        assert_eq!(drawn(1.0, 1.0), None);
        assert!(drawn(1.0, 0.3).unwrap().contains("too improbable"));
        assert!(drawn(0.05, 1.0).unwrap().contains("too near"));
    }
}
