//! How the next token is chosen: options, and the choice from a row of logits.

use anyhow::Result;
use clap::Args as ClapArgs;
use firstdiff_engine::sampler::{NothingToChoose, SampleOptions, Sampler};
use firstdiff_tensor::Real;
use firstdiff_trace::Manifest;

/// Options of the commands that generate.
#[derive(Clone, Debug, ClapArgs)]
pub struct Sampling {
    /// 0 takes the best token; higher draws more freely
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K best tokens only; 0 is no limit
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: u32,
    /// Draw from the best tokens that hold this share of the probability
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from tokens at least this fraction as likely as the best one
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    min_p: f64,
    /// Above 1, tokens of the prompt and the output become less likely
    #[arg(long, default_value_t = 1.0, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// What was asked for.
    ///
    /// # Errors
    /// When a value is outside its range; the message names the option.
    pub fn options(&self) -> Result<SampleOptions> {
        let options = SampleOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        options
            .check()
            .map_err(|e| anyhow::anyhow!("--{} {} is not {}", e.name.replace('_', "-"), e.value, e.range))?;
        Ok(options)
    }
}

/// A sampler for a sequence that begins with `prompt`.
pub fn sampler(options: SampleOptions, prompt: &[i64]) -> Sampler {
    Sampler::new(options, prompt.iter().filter_map(|&t| u32::try_from(t).ok()))
}

/// Says in a manifest how tokens are chosen.
pub fn declare(options: &SampleOptions, manifest: &mut Manifest) {
    if !options.plain() {
        manifest.sampling = Some(options.declared());
    }
}

/// Chooses the next token. Logits of the reference in double precision are taken as they are where the best one is
/// wanted: rounding them first could make two of them equal.
///
/// # Errors
/// When every logit is NaN or minus infinity.
pub fn choose<T: Real>(sampler: &mut Sampler, logits: &[T]) -> Result<u32, NothingToChoose> {
    if !sampler.options().plain() {
        let single: Vec<f32> = logits.iter().map(|x| x.to_f32()).collect();
        return sampler.choose(&single);
    }
    let mut best = (f64::NEG_INFINITY, None);
    for (token, x) in logits.iter().map(|x| x.to_f64()).enumerate() {
        if x > best.0 {
            best = (x, u32::try_from(token).ok());
        }
    }
    let token = best.1.ok_or(NothingToChoose)?;
    sampler.chosen(token);
    Ok(token)
}

/// How far the best logit lies above the second.
pub fn margin<T: Real>(logits: &[T]) -> f64 {
    let (mut best, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for x in logits.iter().map(|x| x.to_f64()) {
        if x > best {
            (best, second) = (x, best);
        } else if x > second {
            second = x;
        }
    }
    best - second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_double_precision_is_not_rounded_first() {
        let mut greedy = sampler(SampleOptions::default(), &[1]);
        assert_eq!(choose(&mut greedy, &[1.0, 1.0 + 1e-12, f64::NAN]), Ok(1));
        assert_eq!(choose(&mut greedy, &[f64::NAN]), Err(NothingToChoose));
    }

    #[test]
    fn the_margin_of_equal_logits_is_zero() {
        assert_eq!(margin(&[2.0f32, 5.0, 5.0]), 0.0);
        assert_eq!(margin(&[2.0f32, 5.0, 4.0]), 1.0);
    }
}
