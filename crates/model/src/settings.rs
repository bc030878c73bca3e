//! Reading a configuration while keeping account of where every value came from.

use std::cell::RefCell;
use std::collections::BTreeSet;

use firstdiff_checkpoint::Config;
use serde_json::Value;

use crate::Error;

/// A configuration value that changes the numerics, and its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key, in config.json spelling.
    pub key: String,
    /// The value used.
    pub value: String,
    /// `config.json: rope_theta`, or `default: …`.
    pub origin: String,
}

/// Typed access to a configuration. Every value read is noted as a [`Setting`].
#[derive(Debug)]
pub struct Settings<'c> {
    config: &'c Config,
    simulation: Option<Simulation>,
    seen: RefCell<Vec<Setting>>,
    keys: RefCell<BTreeSet<String>>,
}

/// What an engine does to values beyond the model's own operations, deterministically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simulation {
    /// DeepSeek's own inference code: keys and compressed entries through FP8, the indexer's queries and
    /// entries through a Hadamard transform and FP4.
    DeepSeek,
}

impl Simulation {
    /// The simulation with this name.
    pub fn from_name(name: &str) -> Option<Simulation> {
        (name == "deepseek").then_some(Simulation::DeepSeek)
    }
}

/// Largest plausible extent: bounds products of a few of them far below overflow.
const MAX_EXTENT: u64 = 1 << 24;

impl<'c> Settings<'c> {
    /// Reads from `config`.
    pub fn new(config: &'c Config) -> Self {
        Settings { config, simulation: None, seen: RefCell::default(), keys: RefCell::default() }
    }

    /// The same, for a program that also does what this simulation does.
    #[must_use]
    pub fn simulating(self, simulation: Option<Simulation>) -> Self {
        Settings { simulation, ..self }
    }

    /// What the program simulates.
    pub fn simulation(&self) -> Option<Simulation> {
        self.simulation
    }

    /// The configuration read from.
    pub fn config(&self) -> &Config {
        self.config
    }

    /// Everything read so far, in order.
    pub fn into_seen(self) -> Vec<Setting> {
        self.seen.into_inner()
    }

    /// An error about `key`.
    pub fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Setting { file: self.config.file().to_path_buf(), key: key.to_string(), reason: reason.into() }
    }

    /// The value of `key`; `null` counts as absent.
    pub fn raw(&self, key: &str) -> Option<&'c Value> {
        self.config.get(key).filter(|v| !v.is_null())
    }

    /// Notes a value and where it came from.
    pub fn note(&self, key: &str, value: impl std::fmt::Display, origin: impl Into<String>) {
        if self.keys.borrow_mut().insert(key.to_string()) {
            let setting = Setting { key: key.to_string(), value: value.to_string(), origin: origin.into() };
            self.seen.borrow_mut().push(setting);
        }
    }

    /// Notes a value read from the file.
    pub fn note_read(&self, key: &str, value: impl std::fmt::Display) {
        self.note(key, value, self.config.origin(key).unwrap_or("file").to_string());
    }

    /// A required extent, at least 1.
    pub fn extent(&self, key: &str) -> Result<usize, Error> {
        self.optional_extent(key)?.ok_or_else(|| self.wrong(key, "is missing; it has no default"))
    }

    /// An extent with the family's default.
    pub fn extent_or(&self, key: &str, default: usize, why: &str) -> Result<usize, Error> {
        if let Some(value) = self.optional_extent(key)? {
            return Ok(value);
        }
        self.note(key, default, format!("default: {why}"));
        Ok(default)
    }

    /// An extent, if given.
    pub fn optional_extent(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.raw(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=MAX_EXTENT).contains(&n) => {
                self.note_read(key, n);
                Ok(Some(n as usize))
            }
            _ => {
                Err(self.wrong(key, format!("is {value}; a whole number from 1 to {MAX_EXTENT} is expected")))
            }
        }
    }

    /// A positive, finite number with the family's default.
    pub fn positive_or(&self, key: &str, default: f64, why: &str) -> Result<f64, Error> {
        let Some(value) = self.raw(key) else {
            self.note(key, default, format!("default: {why}"));
            return Ok(default);
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => {
                self.note_read(key, x);
                Ok(x)
            }
            _ => Err(self.wrong(key, format!("is {value}; a positive number is expected"))),
        }
    }

    /// A flag with the family's default.
    pub fn flag_or(&self, key: &str, default: bool, why: &str) -> Result<bool, Error> {
        let Some(value) = self.raw(key) else {
            self.note(key, default, format!("default: {why}"));
            return Ok(default);
        };
        let flag = value
            .as_bool()
            .ok_or_else(|| self.wrong(key, format!("is {value}; true or false is expected")))?;
        self.note_read(key, flag);
        Ok(flag)
    }

    /// A string with the family's default.
    pub fn string_or(&self, key: &str, default: &str, why: &str) -> Result<String, Error> {
        let Some(value) = self.raw(key) else {
            self.note(key, default, format!("default: {why}"));
            return Ok(default.to_string());
        };
        let text =
            value.as_str().ok_or_else(|| self.wrong(key, format!("is {value}; a string is expected")))?;
        self.note_read(key, text);
        Ok(text.to_string())
    }
}
