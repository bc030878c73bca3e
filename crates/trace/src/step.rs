//! One step file: the tokens of a forward call and the taps recorded in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use firstdiff_tensor::{DType, Real, Tensor, element_count};
use memmap2::Mmap;
use safetensors::SafeTensors;

use crate::Error;

/// Where a tap lies in its file, and what it holds.
#[derive(Clone, Debug)]
pub struct TapInfo {
    /// Element type, as the engine held it.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

impl TapInfo {
    /// A tap that no file holds yet.
    pub fn new(dtype: DType, shape: &[usize]) -> TapInfo {
        TapInfo { dtype, shape: shape.to_vec(), range: 0..0 }
    }

    /// Elements, all axes together.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A forward call. The taps stay in the mapped file until they are asked for.
#[derive(Debug)]
pub struct Step {
    path: PathBuf,
    /// Input tokens, one a row.
    pub token_ids: Vec<i64>,
    /// Position of each row in its sequence.
    pub positions: Vec<i64>,
    /// Sequence number of each row; all zero where no batch was recorded.
    pub sequence: Vec<i64>,
    /// The token chosen after this step.
    pub sampled: Option<i64>,
    taps: BTreeMap<String, TapInfo>,
    map: Option<Mmap>,
}

const RESERVED: [&str; 4] = ["token_ids", "positions", "sequence", "sampled"];

impl Step {
    /// Opens a step file. `next` holds the position that follows, for each sequence seen so far.
    pub(crate) fn open(path: &Path, next: &mut BTreeMap<i64, i64>) -> Result<Step, Error> {
        let meta = std::fs::symlink_metadata(path).map_err(Error::io(path, "read"))?;
        if !meta.is_file() {
            let reason = "it is not a regular file (links are not followed)".to_string();
            return Err(Error::Damaged { path: path.to_path_buf(), reason });
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let map = if meta.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and private to this process; a file cut short by
            // another process while it is mapped is outside what can be defended against.
            Some(unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?)
        };
        let bytes: &[u8] = map.as_deref().unwrap_or_default();
        let damaged = |reason: String| Error::Damaged { path: path.to_path_buf(), reason };
        let parsed = SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;

        let base = bytes.as_ptr() as usize;
        let mut taps = BTreeMap::new();
        for (name, view) in parsed.iter() {
            let unsupported =
                |reason| Error::Tensor { path: path.to_path_buf(), tensor: name.to_string(), reason };
            let dtype = DType::from_name(&view.dtype().to_string()).ok_or_else(|| {
                unsupported(format!(
                    "has the unsupported type {}; record it as F32, F16 or BF16",
                    view.dtype()
                ))
            })?;
            let start = view.data().as_ptr() as usize - base;
            let info =
                TapInfo { dtype, shape: view.shape().to_vec(), range: start..start + view.data().len() };
            taps.insert(name.to_string(), info);
        }
        drop(parsed);

        let mut step = Step {
            path: path.to_path_buf(),
            token_ids: vec![],
            positions: vec![],
            sequence: vec![],
            sampled: None,
            taps,
            map,
        };
        step.token_ids = step.integers("token_ids", None)?.ok_or_else(|| {
            step.wrong("token_ids", "is missing; every step needs its input tokens (i64, T)")
        })?;
        if step.token_ids.is_empty() {
            return Err(step.wrong("token_ids", "is empty; a step has at least one token"));
        }
        let rows = step.token_ids.len();
        step.sequence = step.integers("sequence", Some(rows))?.unwrap_or_else(|| vec![0; rows]);
        let positions = step.integers("positions", Some(rows))?;
        step.sampled = step.integers("sampled", Some(1))?.and_then(|s| s.first().copied());
        for (row, sequence) in step.sequence.iter().enumerate() {
            let following = next.entry(*sequence).or_insert(0);
            let position = positions.as_ref().map_or(*following, |p| p[row]);
            if !(0..i64::from(u32::MAX)).contains(&position) {
                return Err(step
                    .wrong("positions", &format!("holds {position}; positions lie between 0 and 2^32 - 2")));
            }
            *following = position + 1;
            step.positions.push(position);
        }
        for name in RESERVED {
            step.taps.remove(name);
        }
        Ok(step)
    }

    /// The step file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows in this step.
    pub fn rows(&self) -> usize {
        self.token_ids.len()
    }

    /// The taps recorded, by name.
    pub fn taps(&self) -> &BTreeMap<String, TapInfo> {
        &self.taps
    }

    /// A tap's values; `None` where it was not recorded.
    ///
    /// # Errors
    /// When the stored bytes do not fit the type.
    pub fn read<T: Real>(&self, name: &str) -> Result<Option<Tensor<T>>, Error> {
        let Some(tap) = self.taps.get(name) else { return Ok(None) };
        let data = tap.dtype.decode(self.bytes(tap)).map_err(|e| self.wrong(name, &e.to_string()))?;
        let tensor = Tensor::new(tap.shape.clone(), data).map_err(|e| self.wrong(name, &e.to_string()))?;
        Ok(Some(tensor))
    }

    /// A tap's bytes as stored, little-endian.
    pub fn raw(&self, name: &str) -> Option<&[u8]> {
        self.taps.get(name).map(|tap| self.bytes(tap))
    }

    fn bytes(&self, tap: &TapInfo) -> &[u8] {
        &self.map.as_deref().unwrap_or_default()[tap.range.clone()]
    }

    fn integers(&self, name: &str, expected: Option<usize>) -> Result<Option<Vec<i64>>, Error> {
        let Some(tap) = self.taps.get(name) else { return Ok(None) };
        let values =
            tap.dtype.decode_integers(self.bytes(tap)).map_err(|e| self.wrong(name, &e.to_string()))?;
        let count = element_count(&tap.shape).unwrap_or(usize::MAX);
        if tap.shape.len() > 1 && count != values.len() || expected.is_some_and(|n| n != values.len()) {
            let rows = expected.unwrap_or(values.len());
            return Err(self.wrong(name, &format!("has {} elements where {rows} are expected", values.len())));
        }
        Ok(Some(values))
    }

    fn wrong(&self, tensor: &str, reason: &str) -> Error {
        Error::Tensor { path: self.path.clone(), tensor: tensor.to_string(), reason: reason.to_string() }
    }
}
