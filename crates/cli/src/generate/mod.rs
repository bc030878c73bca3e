//! What generates tokens: the reference on CPUs, or the engine on a GPU, behind one interface.

mod cuda;
mod reference;

use anyhow::Result;
use clap::{Args as ClapArgs, ValueEnum};
use firstdiff_engine::sampler::Sampler;
use firstdiff_model::Model;
use firstdiff_reference::Weights;
use firstdiff_tensor::Float;
use firstdiff_trace::{Manifest, StepWriter};

use crate::args::{Precision, Resources};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The reference, on CPUs
    #[default]
    Reference,
    /// The fast engine, on an NVIDIA GPU
    Cuda,
}

/// Options of the commands that run a model.
#[derive(Clone, Debug, ClapArgs)]
pub struct Place {
    /// Where the model runs
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,
    /// The GPU, counted from 0 [default: 0]
    #[arg(long, value_name = "N")]
    device: Option<usize>,
    /// Precision of the reference [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    #[command(flatten)]
    resources: Resources,
}

/// Runs a model step by step.
pub trait Source {
    /// What `trace.json` says of it.
    fn describe(&self, manifest: &mut Manifest);

    /// Runs one step. The wanted values go into `record`, where it is given.
    ///
    /// # Errors
    /// When a token is not the model's, or the backend fails.
    fn feed(&mut self, tokens: &[i64], record: Option<&mut StepWriter<'_>>) -> Result<()>;

    /// Chooses the token after the last step.
    ///
    /// # Errors
    /// When no logit is a number, or the backend fails.
    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32>;

    /// The logits after the last step, in single precision.
    ///
    /// # Errors
    /// When the backend fails.
    fn logits(&mut self) -> Result<Vec<f32>>;

    /// How far the best logit of the last step lies above the second, where it was looked at.
    fn margin(&self) -> Option<f64>;

    /// Tokens after `first`, each the best one, until there are `count` or `stop` says so of one. None where the
    /// backend has no faster way than step by step.
    fn rush(
        &mut self,
        _first: u32,
        _count: usize,
        _stop: &mut dyn FnMut(u32) -> bool,
    ) -> Option<Result<Vec<u32>>> {
        None
    }
}

impl Place {
    /// Starts the backend for up to `context` tokens and lets `work` run it. `taps` are the values to record.
    ///
    /// # Errors
    /// When the backend cannot be started, or `work` fails.
    pub fn with<R>(
        &self,
        model: &Model,
        context: usize,
        taps: &[String],
        work: impl FnOnce(&mut dyn Source) -> Result<R>,
    ) -> Result<R> {
        self.resources.start_threads()?;
        match self.backend {
            Backend::Cuda => {
                if self.dtype.is_some() {
                    anyhow::bail!(
                        "--dtype is the reference's; the CUDA engine has one arithmetic (leave it out)"
                    );
                }
                work(&mut cuda::Cuda::load(model, self.device.unwrap_or(0), context, taps)?)
            }
            Backend::Reference => {
                if self.device.is_some() {
                    anyhow::bail!("--device numbers GPUs; it needs --backend cuda");
                }
                let mut kept = self.resources.memory();
                if self.resources.memory.is_some() {
                    // Half for what is mapped, half for what is dequantised.
                    kept /= 2;
                    model.checkpoint.bound_residency(kept);
                }
                let weights = Weights::new(&model.checkpoint, Float::F32, kept);
                match self.dtype.unwrap_or_default() {
                    Precision::F32 => {
                        work(&mut reference::Reference::<f32>::new(&model.program, &weights, taps))
                    }
                    Precision::F64 => {
                        work(&mut reference::Reference::<f64>::new(&model.program, &weights, taps))
                    }
                }
            }
        }
    }
}
