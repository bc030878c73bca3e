//! Rotary frequencies: every `rope_scaling` type, as formulas in f64.

use std::f64::consts::PI;

use serde_json::Value;

use crate::{Error, Settings};

/// The angle a pair turns by for each position.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeFrequencies {
    /// The same in every step.
    Fixed(Vec<f64>),
    /// Dynamic NTK scaling: the base grows with the largest position of the current step, and
    /// cached keys are not turned again. Prefill and decode of the same tokens differ by design.
    Dynamic {
        /// Base.
        theta: f64,
        /// Rotated channels.
        dim: usize,
        /// Scaling factor.
        factor: f64,
        /// Length up to which the plain base is used.
        max_positions: f64,
    },
}

impl RopeFrequencies {
    /// The frequencies for a step whose largest position is `last`.
    pub fn at(&self, last: u32) -> Vec<f64> {
        match self {
            RopeFrequencies::Fixed(frequencies) => frequencies.clone(),
            RopeFrequencies::Dynamic { theta, dim, factor, max_positions } => {
                let n = (f64::from(last) + 1.0).max(*max_positions);
                let d = *dim as f64;
                let base = theta * (factor * n / max_positions - (factor - 1.0)).powf(d / (d - 2.0));
                plain(base, *dim)
            }
        }
    }
}

/// `theta^(-2i/dim)` for each pair.
fn plain(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect()
}

/// Frequencies and amplitude.
#[derive(Clone, Debug)]
pub(crate) struct RopeConfig {
    pub frequencies: RopeFrequencies,
    pub amplitude: f64,
}

/// Reads the rotary settings in either spelling: `rope_theta` and `rope_scaling` at the top level,
/// or all of it in `rope_parameters`. `rope_scaling` wins where both are given.
pub(crate) fn read(
    s: &Settings,
    usual_theta: f64,
    dim: usize,
    max_positions: usize,
    divisors: Option<&[f32]>,
) -> Result<RopeConfig, Error> {
    let (key, section) = match (s.raw("rope_scaling"), s.raw("rope_parameters")) {
        (Some(v), _) => ("rope_scaling", Some(v)),
        (None, Some(v)) => ("rope_parameters", Some(v)),
        (None, None) => ("rope_scaling", None),
    };
    let section = Section { s, key, values: section };
    let theta = match section.number("rope_theta")? {
        Some(theta) => theta,
        None => match s.raw("rope_parameters").and_then(|p| p.get("rope_theta")).and_then(Value::as_f64) {
            Some(theta) => {
                s.note(
                    "rope_theta",
                    theta,
                    s.config().origin("rope_parameters").unwrap_or("rope_parameters"),
                );
                theta
            }
            None => s.positive_or("rope_theta", usual_theta, "as the family has it")?,
        },
    };
    frequencies(&section, theta, dim, max_positions, divisors)
}

/// The rotary settings of one kind of layer: `values`, an object with `rope_theta` or without, under `key`.
pub(crate) fn read_section(
    s: &Settings,
    (key, values): (&'static str, Option<&Value>),
    theta: f64,
    dim: usize,
    max_positions: usize,
) -> Result<RopeConfig, Error> {
    let section = Section { s, key, values };
    let theta = match values.and_then(|v| v.get("rope_theta")).filter(|v| !v.is_null()) {
        None => theta,
        Some(given) => given
            .as_f64()
            .ok_or_else(|| s.wrong(key, format!("has rope_theta = {given}; a number is expected")))?,
    };
    frequencies(&section, theta, dim, max_positions, None)
}

fn frequencies(
    section: &Section,
    theta: f64,
    dim: usize,
    max_positions: usize,
    divisors: Option<&[f32]>,
) -> Result<RopeConfig, Error> {
    let (s, key, max_positions) = (section.s, section.key, max_positions as f64);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(s.wrong("rope_theta", format!("is {theta}; a positive number is expected")));
    }
    let kind = section.kind()?;
    s.note("rope_type", &kind, if section.values.is_some() { key } else { "default: no rope_scaling" });
    if kind != "default" && section.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
        return Err(s.wrong(key, "has a partial_rotary_factor, which this family does not support"));
    }

    let plain = plain(theta, dim);
    let fixed = |f: Vec<f64>| RopeConfig { frequencies: RopeFrequencies::Fixed(f), amplitude: 1.0 };
    let mut rope = match kind.as_str() {
        "default" => fixed(plain),
        "linear" => {
            let factor = section.positive("factor")?;
            fixed(plain.iter().map(|f| f / factor).collect())
        }
        "dynamic" => {
            let factor = section.positive("factor")?;
            if dim <= 2 {
                return Err(s.wrong(key, "dynamic scaling needs a head size above 2"));
            }
            RopeConfig {
                frequencies: RopeFrequencies::Dynamic { theta, dim, factor, max_positions },
                amplitude: 1.0,
            }
        }
        "llama3" => fixed(llama3(section, &plain, max_positions)?),
        "yarn" => yarn(section, &plain, theta, dim, max_positions)?,
        other => {
            let reason =
                format!("has type '{other}'; supported are default, linear, dynamic, llama3 and yarn");
            return Err(s.wrong(key, reason));
        }
    };
    if let Some(divisors) = divisors {
        let RopeFrequencies::Fixed(f) = &mut rope.frequencies else {
            return Err(s.wrong("rope_freqs", "cannot be combined with dynamic scaling"));
        };
        if divisors.len() != f.len() || divisors.iter().any(|d| !(d.is_finite() && *d > 0.0)) {
            let reason =
                format!("must hold {} positive divisors, one for each pair of a head's channels", f.len());
            return Err(s.wrong("rope_freqs", reason));
        }
        f.iter_mut().zip(divisors).for_each(|(f, d)| *f /= f64::from(*d));
    }
    Ok(rope)
}

/// The rotary settings in one object, as a family has several of them. Yarn does not amplify unless
/// an attention_factor says so. `(key, part)` is what messages and notes call the object.
pub(crate) fn section<'c>(
    s: &Settings<'c>,
    (key, part): (&'static str, &str),
    values: Option<&'c Value>,
    theta: f64,
    dim: usize,
    max_positions: f64,
) -> Result<RopeConfig, Error> {
    if !(theta.is_finite() && theta > 0.0) {
        return Err(s.wrong(key, format!("has rope_theta {theta}; a positive number is expected")));
    }
    let section = Section { s, key, values };
    let kind = section.kind()?;
    s.note(&format!("{part}rope_theta"), theta, key);
    s.note(&format!("{part}rope_type"), &kind, key);
    let plain = plain(theta, dim);
    let fixed = |f: Vec<f64>| RopeConfig { frequencies: RopeFrequencies::Fixed(f), amplitude: 1.0 };
    Ok(match kind.as_str() {
        "default" => fixed(plain),
        "linear" => {
            let factor = section.positive("factor")?;
            fixed(plain.iter().map(|f| f / factor).collect())
        }
        "yarn" => {
            let given = section.number("attention_factor")?;
            s.note("rope attention_factor", given.unwrap_or(1.0), "1 unless given");
            RopeConfig {
                amplitude: given.unwrap_or(1.0),
                ..yarn(&section, &plain, theta, dim, max_positions)?
            }
        }
        other => {
            return Err(s.wrong(key, format!("has type '{other}'; supported are default, linear and yarn")));
        }
    })
}

/// Llama 3: long wavelengths are slowed down by `factor`, short ones left alone, those between
/// are blended.
fn llama3(section: &Section, plain: &[f64], max_positions: f64) -> Result<Vec<f64>, Error> {
    let factor = section.positive("factor")?;
    let low = section.positive("low_freq_factor")?;
    let high = section.positive("high_freq_factor")?;
    let length = section.positive_or("original_max_position_embeddings", max_positions)?;
    if high <= low {
        return Err(section.s.wrong(section.key, "has high_freq_factor <= low_freq_factor"));
    }
    let scale = |f: f64| {
        let wavelength = 2.0 * PI / f;
        if wavelength > length / low {
            f / factor
        } else if wavelength < length / high {
            f
        } else {
            let smooth = (length / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    Ok(plain.iter().map(|&f| scale(f)).collect())
}

/// YaRN (Peng et al., 2023, arXiv:2309.00071).
fn yarn(
    section: &Section,
    plain: &[f64],
    theta: f64,
    dim: usize,
    max_positions: f64,
) -> Result<RopeConfig, Error> {
    let length = section.positive_or("original_max_position_embeddings", max_positions)?;
    let factor = section.positive_or("factor", max_positions / length)?;
    let d = dim as f64;
    // The channel that turns `turns` times over the original length.
    let channel = |turns: f64| d * (length / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let mut low = channel(section.positive_or("beta_fast", 32.0)?);
    let mut high = channel(section.positive_or("beta_slow", 1.0)?);
    if section.flag_or("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(d - 1.0));
    if low == high {
        high += 0.001;
    }
    let frequencies = plain
        .iter()
        .enumerate()
        .map(|(i, f)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * ramp + f * (1.0 - ramp)
        })
        .collect();
    let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let amplitude = match section.number("attention_factor")? {
        Some(given) => given,
        None => match (section.number("mscale")?, section.number("mscale_all_dim")?) {
            (Some(a), Some(b)) if a != 0.0 && b != 0.0 => mscale(a) / mscale(b),
            _ => mscale(1.0),
        },
    };
    section.s.note("rope attention_factor", amplitude, format!("{}: yarn", section.key));
    Ok(RopeConfig { frequencies: RopeFrequencies::Fixed(frequencies), amplitude })
}

/// A nested object of the configuration.
struct Section<'s, 'c> {
    s: &'s Settings<'c>,
    key: &'static str,
    values: Option<&'c Value>,
}

impl Section<'_, '_> {
    /// The scaling type; older files spell the key `type`.
    fn kind(&self) -> Result<String, Error> {
        let Some(values) = self.values else { return Ok("default".into()) };
        if !values.is_object() {
            return Err(self.s.wrong(self.key, format!("is {values}; an object is expected")));
        }
        match values.get("rope_type").or_else(|| values.get("type")) {
            None | Some(Value::Null) => Ok("default".into()),
            Some(Value::String(kind)) => Ok(kind.clone()),
            Some(other) => Err(self.s.wrong(self.key, format!("has type {other}; a string is expected"))),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.values.and_then(|v| v.get(name)).filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        match value.as_f64().filter(|x| x.is_finite()) {
            Some(x) => {
                let noted = if name == "rope_theta" { name.to_string() } else { format!("rope {name}") };
                self.s.note(&noted, x, self.s.config().origin(self.key).unwrap_or(self.key));
                Ok(Some(x))
            }
            None => Err(self.s.wrong(self.key, format!("has {name} = {value}; a number is expected"))),
        }
    }

    fn positive(&self, name: &str) -> Result<f64, Error> {
        match self.number(name)? {
            Some(x) if x > 0.0 => Ok(x),
            Some(x) => {
                Err(self.s.wrong(self.key, format!("has {name} = {x}; a positive number is expected")))
            }
            None => Err(self.s.wrong(self.key, format!("lacks {name}"))),
        }
    }

    /// Zero counts as absent, as in the transformers library.
    fn positive_or(&self, name: &str, default: f64) -> Result<f64, Error> {
        match self.number(name)? {
            Some(x) if x > 0.0 => Ok(x),
            Some(0.0) | None => {
                self.s.note(&format!("rope {name}"), default, "default");
                Ok(default)
            }
            Some(x) => {
                Err(self.s.wrong(self.key, format!("has {name} = {x}; a positive number is expected")))
            }
        }
    }

    fn flag_or(&self, name: &str, default: bool) -> Result<bool, Error> {
        match self.values.and_then(|v| v.get(name)) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(self.s.wrong(self.key, format!("has {name} = {other}; true or false is expected")))
            }
        }
    }
}
