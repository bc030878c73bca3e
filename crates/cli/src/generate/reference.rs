//! The reference as a source of tokens.

use std::any::TypeId;

use anyhow::Result;
use firstdiff_engine::sampler::Sampler;
use firstdiff_model::Program;
use firstdiff_reference::{Computed, Executor, Session, Taps, Weights};
use firstdiff_tensor::{Real, Tensor};
use firstdiff_trace::{ArithmeticSpec, Manifest, StepWriter, tap};

use super::Source;
use crate::sampling;

/// A session of the reference, and the logits after its last step.
pub struct Reference<'m, T> {
    program: &'m Program,
    session: Session<'m, T>,
    taps: &'m [String],
    last: Vec<T>,
}

impl<'m, T: Real + 'static> Reference<'m, T> {
    pub fn new(program: &'m Program, weights: &'m Weights<'m>, taps: &'m [String]) -> Reference<'m, T> {
        let executor = Executor { program, weights, arithmetic: None, lanes: 0, progress: None };
        Reference { program, session: Session::new(executor), taps, last: vec![] }
    }

    fn wide() -> bool {
        TypeId::of::<T>() == TypeId::of::<f64>()
    }
}

impl<T: Real + 'static> Source for Reference<'_, T> {
    fn describe(&self, manifest: &mut Manifest) {
        manifest.producer.name = "firstdiff reference".into();
        let format = if Self::wide() { "f64" } else { "f32" };
        manifest.arithmetic = Some(ArithmeticSpec {
            weights: Some("file".into()),
            activations: Some(format.into()),
            accumulate: Some(format.into()),
            ..ArithmeticSpec::default()
        });
    }

    fn feed(&mut self, tokens: &[i64], record: Option<&mut StepWriter<'_>>) -> Result<()> {
        let Some(step) = record else {
            self.last = self.session.feed(tokens)?;
            return Ok(());
        };
        let mut recorder =
            Recorder { program: self.program, taps: self.taps, step, wide: Self::wide(), last: vec![] };
        self.session.feed_with(tokens, &mut recorder)?;
        self.last = recorder.last;
        Ok(())
    }

    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32> {
        Ok(sampling::choose(sampler, &self.last)?)
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        Ok(self.last.iter().map(|x| x.to_f32()).collect())
    }

    fn margin(&self) -> Option<f64> {
        Some(sampling::margin(&self.last))
    }
}

/// Puts the wanted values into a step file.
struct Recorder<'a, 's, 'w, T> {
    program: &'a Program,
    taps: &'a [String],
    step: &'s mut StepWriter<'w>,
    wide: bool,
    /// Logits of the last row.
    last: Vec<T>,
}

impl<T: Real> Taps<T> for Recorder<'_, '_, '_, T> {
    fn recorded(&self, _op: usize, _step: usize) -> bool {
        false
    }

    fn visit(&mut self, computed: Computed<T>) -> Result<Option<Tensor<T>>, firstdiff_reference::Error> {
        let op = &self.program.ops[computed.op];
        let name = &op.tap;
        if self.taps.iter().any(|glob| glob == "all" || tap::matches(glob, name)) {
            match op.kind.discrete() {
                Some(_) => self.step.choice(name, computed.exact),
                None => self.step.tap(name, computed.exact, self.wide),
            }
        }
        if computed.op + 1 == self.program.ops.len() {
            self.last = computed.exact.row(computed.exact.rows() - 1).to_vec();
        }
        Ok(None)
    }
}
