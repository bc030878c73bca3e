//! Opening what commands work on.

use std::path::Path;

use anyhow::{Context as _, Result};
use firstdiff_checkpoint::Checkpoint;
use firstdiff_model::{Model, Simulation};

use crate::args::Resources;

/// Opens a model and writes its program.
pub fn model(path: &Path) -> Result<Model> {
    simulating(path, None)
}

/// The same, with what a simulation does besides.
pub fn simulating(path: &Path, simulation: Option<Simulation>) -> Result<Model> {
    Ok(Model::simulating(Checkpoint::open(path)?, simulation)?)
}

/// Opens what is here of a model, and writes the whole program.
pub fn part_of_model(path: &Path, simulation: Option<Simulation>) -> Result<Model> {
    Ok(Model::of_part(Checkpoint::open_part(path)?, simulation)?)
}

impl Resources {
    /// Bytes of dequantised weights to keep.
    pub fn memory(&self) -> usize {
        self.memory.unwrap_or_else(|| physical_memory().unwrap_or(4 << 30) / 4)
    }

    /// Sets the number of threads for the rest of the process.
    pub fn start_threads(&self) -> Result<()> {
        let Some(threads) = self.threads else { return Ok(()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads));
        pool.build_global().context("cannot start the threads")
    }
}

/// Bytes of memory this machine has, where the system tells.
fn physical_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
