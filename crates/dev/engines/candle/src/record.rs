//! A trace: `trace.json`, and one safetensors file a step, written with candle's own writer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde_json::json;

/// Collects a step's taps and writes them. Says nothing of the arithmetic: that is left to be found out.
pub struct Recorder {
    folder: PathBuf,
    family: String,
    taps: HashMap<String, Tensor>,
    steps: usize,
}

impl Recorder {
    /// Starts a trace in a new folder.
    pub fn create(folder: &Path, family: &str) -> Result<Recorder> {
        std::fs::create_dir_all(folder)?;
        let recorder =
            Recorder { folder: folder.into(), family: family.into(), taps: HashMap::new(), steps: 0 };
        recorder.about(false)?;
        Ok(recorder)
    }

    fn about(&self, complete: bool) -> Result<()> {
        let about = json!({
            "format": "firstdiff.trace/1",
            "producer": {"name": "candle", "version": candle_version()},
            "model": {"family": self.family},
            "environment": {"device": "cpu"},
            "complete": complete,
        });
        let path = self.folder.join("trace.json");
        std::fs::write(path.with_extension("tmp"), format!("{about:#}\n"))?;
        Ok(std::fs::rename(path.with_extension("tmp"), path)?)
    }

    /// A value with the axes 1, T and others.
    pub fn tap(&mut self, name: String, value: &Tensor) -> candle_core::Result<()> {
        self.taps.insert(name, value.squeeze(0)?.contiguous()?);
        Ok(())
    }

    /// A value with the axes 1, H, T, D; a trace has T, H, D.
    pub fn heads(&mut self, name: String, value: &Tensor) -> candle_core::Result<()> {
        self.tap(name, &value.transpose(1, 2)?)
    }

    /// Writes the step, whole or not at all.
    pub fn step(&mut self, ids: &[u32], start: usize, sampled: u32) -> Result<()> {
        let integers = |values: Vec<i64>| Tensor::new(values, &Device::Cpu);
        let mut taps = std::mem::take(&mut self.taps);
        taps.insert("token_ids".into(), integers(ids.iter().map(|&id| id.into()).collect())?);
        let positions = (start..start + ids.len()).map(|position| position as i64).collect();
        taps.insert("positions".into(), integers(positions)?);
        taps.insert("sampled".into(), integers(vec![sampled.into()])?);
        let path = self.folder.join(format!("step-{:06}.safetensors", self.steps));
        candle_core::safetensors::save(&taps, path.with_extension("tmp"))?;
        std::fs::rename(path.with_extension("tmp"), path)?;
        self.steps += 1;
        Ok(())
    }

    /// Marks the trace as complete.
    pub fn finish(self) -> Result<()> {
        self.about(true)
    }
}

/// The version in Cargo.toml, which is exact.
fn candle_version() -> &'static str {
    let (_, after) =
        include_str!("../Cargo.toml").split_once("candle-core = { version = \"=").unwrap_or_default();
    after.split('"').next().unwrap_or_default()
}
