//! Writing a trace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use firstdiff_tensor::{DType, Real, Tensor};
use serde_json::json;

use crate::{Error, Fork, Manifest};

/// Writes a trace, step by step. A step is on disk, whole, when [`StepWriter::finish`] returns.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    manifest: Manifest,
    steps: usize,
}

impl Writer {
    /// Starts a trace in the folder `path`, which must be absent or empty.
    ///
    /// # Errors
    /// When the folder holds something, or cannot be written.
    pub fn create(path: &Path, mut manifest: Manifest) -> Result<Writer, Error> {
        std::fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))?;
        let mut entries = std::fs::read_dir(path).map_err(Error::io(path, "list the folder"))?;
        if entries.next().is_some() {
            return Err(Error::Occupied { path: path.to_path_buf() });
        }
        manifest.complete = Some(false);
        let writer = Writer { path: path.to_path_buf(), manifest, steps: 0 };
        writer.write_manifest()?;
        Ok(writer)
    }

    /// A new step over these input rows. Without positions, it goes on from the step before.
    pub fn step(&mut self, token_ids: &[i64], positions: &[i64]) -> StepWriter<'_> {
        let mut step = StepWriter { writer: self, entries: BTreeMap::new() };
        step.integers("token_ids", token_ids);
        if !positions.is_empty() {
            step.integers("positions", positions);
        }
        step
    }

    /// Marks the trace as complete.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn finish(mut self) -> Result<(), Error> {
        self.manifest.complete = Some(true);
        self.write_manifest()
    }

    fn write_manifest(&self) -> Result<(), Error> {
        let path = self.path.join("trace.json");
        let mut text = serde_json::to_vec_pretty(&self.manifest)
            .map_err(|e| Error::Manifest { path: path.clone(), reason: e.to_string() })?;
        text.push(b'\n');
        write_whole(&path, |out| out.write_all(&text))
    }
}

/// A step being put together; taps are held as bytes until it is finished.
#[derive(Debug)]
pub struct StepWriter<'w> {
    writer: &'w mut Writer,
    entries: BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>,
}

impl StepWriter<'_> {
    fn integers(&mut self, name: &str, values: &[i64]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.entries.insert(name.to_string(), ("I64", vec![values.len()], bytes));
    }

    /// Notes the token chosen after this step of one sequence.
    pub fn sampled(&mut self, token: i64) {
        self.integers("sampled", &[token]);
    }

    /// Adds a tensor that describes rows or keys: `sequence`, `sampled` of several sequences, `logits_rows`,
    /// `key_sequence`, `key_position`.
    pub fn describe(&mut self, name: &str, values: &[i64]) {
        self.integers(name, values);
    }

    /// Notes sequences whose first keys are those of others.
    pub fn forks(&mut self, forks: &[Fork]) {
        let numbers = forks.iter().flat_map(|f| [f.sequence, f.parent, i64::from(f.length)]);
        let bytes = numbers.flat_map(i64::to_le_bytes).collect();
        self.entries.insert("fork".to_string(), ("I64", vec![forks.len(), 3], bytes));
    }

    /// Adds a tap, stored as f32, or as f64 where `wide`.
    pub fn tap<T: Real>(&mut self, name: &str, value: &Tensor<T>, wide: bool) {
        // Written in place, element by element: the loop becomes a copy where the types are equal.
        let mut bytes = vec![0; value.len() * if wide { 8 } else { 4 }];
        if wide {
            let out = bytes.as_chunks_mut::<8>().0.iter_mut();
            out.zip(value.data()).for_each(|(out, x)| *out = x.to_f64().to_le_bytes());
        } else {
            let out = bytes.as_chunks_mut::<4>().0.iter_mut();
            out.zip(value.data()).for_each(|(out, x)| *out = x.to_f32().to_le_bytes());
        }
        self.entries
            .insert(name.to_string(), (if wide { "F64" } else { "F32" }, value.shape().to_vec(), bytes));
    }

    /// Adds a tap as the engine held it: little-endian elements of type `dtype`, row by row.
    pub fn bytes(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) {
        self.entries.insert(name.to_string(), (dtype.name(), shape.to_vec(), bytes));
    }

    /// Adds a tap of whole numbers: a choice.
    pub fn choice<T: Real>(&mut self, name: &str, value: &Tensor<T>) {
        let bytes = value.data().iter().flat_map(|x| (x.to_f64() as i32).to_le_bytes()).collect();
        self.entries.insert(name.to_string(), ("I32", value.shape().to_vec(), bytes));
    }

    /// Writes the step under a temporary name, then renames it.
    ///
    /// # Errors
    /// When the file cannot be written; a file of that name then does not exist.
    pub fn finish(self) -> Result<(), Error> {
        let mut header = serde_json::Map::new();
        let mut offset = 0usize;
        for (name, (dtype, shape, bytes)) in &self.entries {
            let end = offset + bytes.len();
            header
                .insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
            offset = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let path = self.writer.path.join(format!("step-{:06}.safetensors", self.writer.steps));
        write_whole(&path, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            self.entries.values().try_for_each(|(_, _, bytes)| out.write_all(bytes))
        })?;
        self.writer.steps += 1;
        Ok(())
    }
}

/// Writes `path` by way of a temporary file beside it, so that it is never seen half-written.
fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut out = BufWriter::new(File::create(&temporary)?);
        fill(&mut out)?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|source| {
        // Best effort: the error being reported matters more than a leftover.
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.to_path_buf(), action: "write", source }
    })
}
