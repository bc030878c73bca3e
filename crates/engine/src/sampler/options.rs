//! What the caller may set.

use serde_json::{Map, Value};

/// Settings of the choice; [`crate::sampler`] says what each does, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// 0 takes the best token.
    pub temperature: f64,
    /// How many of the best tokens are left; 0 is no limit.
    pub top_k: u32,
    /// The share of the probability that the best tokens left hold; 1 is no limit.
    pub top_p: f64,
    /// The least probability left, as a fraction of the best token's; 0 is no limit.
    pub min_p: f64,
    /// Above 1, tokens that occurred become less likely; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SampleOptions {
    /// Greedy.
    fn default() -> SampleOptions {
        SampleOptions { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} {value} is not {range}")]
pub struct BadOption {
    /// The setting, as `trace.json` spells it.
    pub name: &'static str,
    /// What was given.
    pub value: f64,
    /// What is allowed.
    pub range: &'static str,
}

impl SampleOptions {
    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), BadOption> {
        let unit = |x: f64| (0.0..=1.0).contains(&x);
        let r = self.repetition_penalty;
        let settings = [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "a number from 0 up",
            ),
            ("top_p", self.top_p, unit(self.top_p), "a number from 0 to 1"),
            ("min_p", self.min_p, unit(self.min_p), "a number from 0 to 1"),
            (
                "repetition_penalty",
                r,
                // Applied in f32.
                r as f32 > 0.0 && (r as f32).is_finite(),
                "a number above 0",
            ),
        ];
        match settings.into_iter().find(|(.., right, _)| !right) {
            Some((name, value, _, range)) => Err(BadOption { name, value, range }),
            None => Ok(()),
        }
    }

    /// Whether the largest logit is taken as it is: neither drawn nor penalised.
    pub fn plain(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// The settings as `trace.json` has them under `sampling`. Those that change nothing are left out.
    pub fn declared(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let draws = self.temperature > 0.0;
        map.insert("do_sample".into(), draws.into());
        if draws {
            map.insert("temperature".into(), self.temperature.into());
            map.insert("seed".into(), self.seed.into());
        }
        let limits = [
            ("top_k", f64::from(self.top_k), 0.0),
            ("top_p", self.top_p, 1.0),
            ("min_p", self.min_p, 0.0),
            ("repetition_penalty", self.repetition_penalty, 1.0),
        ];
        for (name, value, neutral) in limits {
            if value != neutral && (draws || name == "repetition_penalty") {
                let value = if name == "top_k" { self.top_k.into() } else { value.into() };
                map.insert(name.into(), value);
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_refused_by_name() {
        let greedy = SampleOptions::default();
        assert_eq!(greedy.check(), Ok(()));
        for (name, wrong) in [
            ("temperature", SampleOptions { temperature: -0.5, ..greedy.clone() }),
            ("temperature", SampleOptions { temperature: f64::NAN, ..greedy.clone() }),
            ("temperature", SampleOptions { temperature: f64::INFINITY, ..greedy.clone() }),
            ("top_p", SampleOptions { top_p: 1.1, ..greedy.clone() }),
            ("min_p", SampleOptions { min_p: -0.1, ..greedy.clone() }),
            ("repetition_penalty", SampleOptions { repetition_penalty: 0.0, ..greedy.clone() }),
            ("repetition_penalty", SampleOptions { repetition_penalty: 1e300, ..greedy.clone() }),
        ] {
            assert_eq!(wrong.check().map_err(|e| e.name), Err(name));
        }
    }

    #[test]
    fn what_changes_nothing_is_not_declared() {
        let options = SampleOptions { temperature: 0.8, top_k: 40, seed: 7, ..SampleOptions::default() };
        let text = Value::Object(options.declared()).to_string();
        assert_eq!(text, r#"{"do_sample":true,"temperature":0.8,"seed":7,"top_k":40}"#);
        let greedy = SampleOptions { top_k: 40, ..SampleOptions::default() };
        assert_eq!(Value::Object(greedy.declared()).to_string(), r#"{"do_sample":false}"#);
    }
}
