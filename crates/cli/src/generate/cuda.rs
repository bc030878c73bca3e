//! The CUDA engine as a source of tokens.

use anyhow::{Context as _, Result};
use firstdiff_engine::cuda::{Engine, Error, Options, Wanted};
use firstdiff_engine::sampler::Sampler;
use firstdiff_model::Model;
use firstdiff_trace::{Manifest, StepWriter};
use serde_json::json;

use super::Source;
use crate::sampling;

/// The engine, and what is known of its last step.
pub struct Cuda {
    engine: Engine,
    wanted: Wanted,
    vocab: usize,
    best: u32,
    /// Logits after the last step, where they were fetched from the GPU.
    row: Option<Vec<f32>>,
}

impl Cuda {
    pub fn load(model: &Model, device: usize, context: usize, taps: &[String]) -> Result<Cuda> {
        let engine =
            Engine::load(model, &Options { device, context }).context("the CUDA backend cannot start")?;
        let wanted = Wanted::matching(&model.program, taps);
        Ok(Cuda { engine, wanted, vocab: model.program.vocab, best: 0, row: None })
    }

    /// Ids as the engine takes them.
    fn ids(&self, tokens: &[i64]) -> Result<Vec<u32>> {
        let vocab = self.vocab;
        let id = |&t: &i64| {
            u32::try_from(t).with_context(|| format!("token {t} is not one of the model's {vocab}"))
        };
        tokens.iter().map(id).collect()
    }
}

impl Source for Cuda {
    fn describe(&self, manifest: &mut Manifest) {
        manifest.producer.name = "firstdiff cuda".into();
        manifest.arithmetic = Some(self.engine.arithmetic());
        let device = self.engine.device();
        let environment = json!({
            "device": device.name,
            "compute_capability": format!("{}.{}", device.capability.0, device.capability.1),
            "driver_cuda": format!("{}.{}", device.driver / 1000, device.driver % 1000 / 10),
        });
        manifest.environment = environment.as_object().cloned();
    }

    fn feed(&mut self, tokens: &[i64], record: Option<&mut StepWriter<'_>>) -> Result<()> {
        let ids = self.ids(tokens)?;
        let none = Wanted::none();
        let wanted = if record.is_some() { &self.wanted } else { &none };
        // One token after others is what decoding is, whoever chose it.
        let step = match ids[..] {
            [token] if self.engine.position() > 0 => self.engine.decode(token, wanted)?,
            _ => self.engine.prefill(&ids, wanted)?,
        };
        (self.best, self.row) = (step.best, None);
        if let Some(record) = record {
            for tap in step.taps {
                record.bytes(&tap.name, tap.dtype, &tap.shape, tap.bytes);
            }
        }
        Ok(())
    }

    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32> {
        if sampler.options().plain() {
            sampler.chosen(self.best);
            return Ok(self.best);
        }
        // On the GPU, by the same definition: a row of logits is not fetched for every token.
        Ok(self.engine.choose(sampler)?)
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        if self.row.is_none() {
            self.row = Some(self.engine.logits()?);
        }
        Ok(self.row.clone().unwrap_or_default())
    }

    fn margin(&self) -> Option<f64> {
        self.row.as_deref().map(sampling::margin)
    }

    fn rush(
        &mut self,
        first: u32,
        count: usize,
        stop: &mut dyn FnMut(u32) -> bool,
    ) -> Option<Result<Vec<u32>>> {
        self.row = None;
        Some(self.engine.generate(first, count, stop).map_err(|e: Error| e.into()))
    }
}
