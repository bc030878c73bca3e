//! Holding a running engine against the reference: its first steps are recorded, and checked while it goes on.

use std::path::Path;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context as _, Result, anyhow};
use firstdiff_compare::{Check, CheckOptions};
use firstdiff_engine::sampler::{SampleOptions, Sampler};
use firstdiff_model::Model;
use firstdiff_trace::{Manifest, Producer, Trace, Writer};
use tempfile::TempDir;

use crate::cmd::check::judge;
use crate::generate::Source;
use crate::sampling::declare;

/// Prompts above this many tokens leave out the taps that grow with the square of their length.
const LONG_PROMPT: usize = 512;
const SQUARE: [&str; 2] = ["attn_scores", "attn_probs"];

/// Where the first steps go.
pub struct Recording {
    folder: TempDir,
    /// The values recorded.
    pub taps: Vec<String>,
    steps: usize,
}

impl Recording {
    /// For a prompt of so many tokens and `steps` more.
    ///
    /// # Errors
    /// When no temporary folder can be made.
    pub fn new(steps: usize, model: &Model, prompt: usize) -> Result<Recording> {
        let folder =
            tempfile::tempdir().context("cannot make a temporary folder for the values to verify")?;
        let left_out = |tap: &str| prompt > LONG_PROMPT && SQUARE.iter().any(|square| tap.ends_with(square));
        let names = model.program.ops.iter().map(|op| op.tap.clone());
        Ok(Recording { folder, taps: names.filter(|tap| !left_out(tap)).collect(), steps })
    }
}

/// Records the first steps, then checks them on other threads.
pub struct Background<'s, 'e> {
    recording: Recording,
    writer: Option<Writer>,
    left: usize,
    threads: &'s Scope<'s, 'e>,
    model: &'e Model,
    path: &'e Path,
    check: Option<ScopedJoinHandle<'s, Result<Check>>>,
}

impl<'s, 'e> Background<'s, 'e> {
    pub fn new(
        recording: Recording,
        threads: &'s Scope<'s, 'e>,
        model: &'e Model,
        path: &'e Path,
    ) -> Background<'s, 'e> {
        // The prompt is a step too.
        let left = recording.steps + 1;
        Background { recording, writer: None, left, threads, model, path, check: None }
    }

    /// Starts the trace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&mut self, source: &dyn Source, stops: &[i64], sampling: &SampleOptions) -> Result<()> {
        let mut manifest = Manifest::new(Producer::default());
        source.describe(&mut manifest);
        manifest.stop_ids = Some(stops.to_vec());
        declare(sampling, &mut manifest);
        self.writer = Some(Writer::create(self.recording.folder.path(), manifest)?);
        Ok(())
    }

    /// Whether the next step is to be recorded.
    pub fn recording(&self) -> bool {
        self.writer.is_some()
    }

    /// Runs one step, records it, and chooses the next token. After the last one the check begins.
    ///
    /// # Errors
    /// When the step fails, or cannot be written.
    pub fn step(&mut self, source: &mut dyn Source, input: &[i64], sampler: &mut Sampler) -> Result<u32> {
        let mut writer = self.writer.take().context("the steps to verify are recorded already")?;
        let mut step = writer.step(input, &[]);
        source.feed(input, Some(&mut step))?;
        let token = source.choose(sampler)?;
        step.sampled(i64::from(token));
        step.finish()?;
        self.left -= 1;
        self.writer = Some(writer);
        if self.left == 0 {
            self.start()?;
        }
        Ok(token)
    }

    fn start(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        writer.finish()?;
        let trace = Trace::open(self.recording.folder.path())?;
        let (model, path) = (self.model, self.path);
        self.check = Some(self.threads.spawn(move || judge(&trace, model, CheckOptions::default(), path)));
        Ok(())
    }

    /// Waits for the verdict. A generation that ended early is judged by the steps there are.
    ///
    /// # Errors
    /// When the check fails.
    pub fn verdict(mut self) -> Result<Check> {
        self.start()?;
        let check = self.check.take().context("nothing was generated that could be verified")?;
        check.join().map_err(|_| anyhow!("the check ended unexpectedly"))?
    }
}
