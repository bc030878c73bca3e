//! A model on a GPU.

use firstdiff_model::Model;
use firstdiff_trace::ArithmeticSpec;

use crate::cuda::{Device, Error, Tap, Wanted};

/// How to load a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The GPU, counted from 0.
    pub device: usize,
    /// Tokens that the cache holds.
    pub context: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { device: 0, context: 4096 }
    }
}

/// Memory of the GPU that a model takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub weights: usize,
    /// Cached keys and values.
    pub cache: usize,
    /// Everything else; prompts and taps come on top.
    pub scratch: usize,
}

/// What a step gives.
#[derive(Clone, Debug)]
pub struct Step {
    /// The token with the largest logit after the last row; the first of several.
    pub best: u32,
    /// The wanted values, in the program's order.
    pub taps: Vec<Tap>,
}

/// A model on a GPU, with the cache of one sequence.
#[derive(Debug)]
pub struct Engine {
    device: Device,
}

impl Engine {
    /// Puts a model on the GPU.
    ///
    /// # Errors
    /// When GPU, driver or a library is missing, when memory does not suffice, or when the model is none
    /// that this engine runs.
    pub fn load(_model: &Model, options: &Options) -> Result<Engine, Error> {
        Ok(Engine { device: Device::find(options.device)? })
    }

    /// Memory that loading `model` would take. Needs no GPU.
    ///
    /// # Errors
    /// When the model is none that this engine runs.
    pub fn memory_needed(_model: &Model, _options: &Options) -> Result<Memory, Error> {
        Err(Error::NoDriver)
    }

    /// The GPU in use.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How the engine rounds, for traces to declare.
    pub fn arithmetic(&self) -> ArithmeticSpec {
        ArithmeticSpec::default()
    }

    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        0
    }

    /// Goes back to where `position` tokens were in the cache; 0 starts anew.
    pub fn rewind(&mut self, _position: usize) {}

    /// Runs tokens through the model in one step, as a prompt.
    ///
    /// # Errors
    /// When a token is not the model's, the context is too short, or the GPU fails.
    pub fn prefill(&mut self, _tokens: &[u32], _taps: &Wanted) -> Result<Step, Error> {
        Err(Error::NoTokens)
    }

    /// Runs one token through the model.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn decode(&mut self, _token: u32, _taps: &Wanted) -> Result<Step, Error> {
        Err(Error::NoTokens)
    }

    /// The logits after the last row of the last step.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn logits(&self) -> Result<Vec<f32>, Error> {
        Err(Error::NoTokens)
    }

    /// Greedy tokens from `first` on, without waiting for each: `first` is decoded, then the best token
    /// each time, until `count` were made or `stop` says so of one.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn generate(
        &mut self,
        _first: u32,
        _count: usize,
        _stop: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Vec<u32>, Error> {
        Err(Error::NoTokens)
    }
}
