//! One step file: the tokens of a forward call and the taps recorded in it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use firstdiff_tensor::{DType, Real, Tensor, element_count};
use memmap2::Mmap;
use safetensors::SafeTensors;

use crate::keys::{self, Fork, Key, KeyAxes, KeyAxis};
use crate::{Error, tap, taps};

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
    /// The token chosen after this step, for each of its sequences in the order of [`Step::sequences`]; empty where
    /// the trace does not say.
    pub sampled: Vec<Option<i64>>,
    /// The rows that `logits`, and what else comes after the last cache, hold where they hold fewer than all; ascending.
    pub logits_rows: Option<Vec<usize>>,
    /// Whose keys caches, scores and probabilities hold, where the trace says so.
    pub keys: KeyAxes,
    /// Sequences that begin in this step with keys of others.
    pub forks: Vec<Fork>,
    taps: BTreeMap<String, TapInfo>,
    scales: BTreeMap<String, TapInfo>,
    map: Option<Mmap>,
}

const RESERVED: [&str; 8] =
    ["token_ids", "positions", "sequence", "sampled", "logits_rows", "key_sequence", "key_position", "fork"];
/// What of these a layer may have of its own.
const RESERVED_IN_LAYERS: [&str; 2] = ["key_sequence", "key_position"];
/// Scales of a cache that is stored in a short format.
const SCALES: [&str; 2] = ["k_scale", "v_scale"];

impl Step {
    /// Opens a step file. `next` holds the position that follows, for each sequence seen so far.
    /// `sandwich`: see [`taps::meant`].
    pub(crate) fn open(path: &Path, next: &mut BTreeMap<i64, i64>, sandwich: bool) -> Result<Step, Error> {
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
        let (mut taps, scales): (BTreeMap<_, _>, BTreeMap<_, _>) = taps
            .into_iter()
            .partition(|(name, _)| !matches!(tap::split(name), (Some(_), rest) if SCALES.contains(&rest)));
        taps::rename(&mut taps, sandwich);

        let mut step = Step {
            path: path.to_path_buf(),
            token_ids: vec![],
            positions: vec![],
            sequence: vec![],
            sampled: vec![],
            logits_rows: None,
            keys: KeyAxes::default(),
            forks: vec![],
            taps,
            scales,
            map,
        };
        step.token_ids = step.integers("token_ids", None)?.ok_or_else(|| {
            step.wrong("token_ids", "is missing; every step needs its input tokens (i64, T)")
        })?;
        if step.token_ids.is_empty() {
            return Err(step.wrong("token_ids", "is empty; a step has at least one token"));
        }
        let rows = step.token_ids.len();
        let flat = step.taps.get("token_ids").is_none_or(|t| t.shape.iter().filter(|&&d| d > 1).count() <= 1);
        if !flat && !step.taps.contains_key("sequence") {
            return Err(step.wrong(
                "token_ids",
                "has more than one axis: a batch. Flatten it, leave padding out, and give each row its `sequence` (I64, T)",
            ));
        }
        step.sequence = step.integers("sequence", Some(rows))?.unwrap_or_else(|| vec![0; rows]);
        step.forks = step.read_forks()?;
        for fork in &step.forks {
            next.entry(fork.sequence).or_insert(i64::from(fork.length));
        }
        let positions = step.integers("positions", Some(rows))?;
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
        step.sampled = step.read_sampled()?;
        step.logits_rows = step.read_logits_rows()?;
        step.keys = step.read_key_axes()?;
        step.taps.retain(|name, _| {
            !RESERVED.contains(&name.as_str())
                && !matches!(tap::split(name), (Some(_), rest) if RESERVED_IN_LAYERS.contains(&rest))
        });
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

    /// The sequences of its rows, in the order in which they first appear.
    pub fn sequences(&self) -> Vec<i64> {
        keys::in_order(&self.sequence)
    }

    /// The token chosen for `sequence` after this step, where the trace says so.
    pub fn chosen(&self, sequence: i64) -> Option<i64> {
        let place = self.sequences().iter().position(|q| *q == sequence)?;
        self.sampled.get(place).copied().flatten()
    }

    /// Scales of caches in short formats, by name: `layers.N.k_scale`, `layers.N.v_scale`.
    pub fn scales(&self) -> &BTreeMap<String, TapInfo> {
        &self.scales
    }

    /// The taps recorded, by name.
    pub fn taps(&self) -> &BTreeMap<String, TapInfo> {
        &self.taps
    }

    /// A tap's values, or those of a scale; `None` where it was not recorded.
    ///
    /// # Errors
    /// When the stored bytes do not fit the type.
    pub fn read<T: Real>(&self, name: &str) -> Result<Option<Tensor<T>>, Error> {
        let Some(tap) = self.taps.get(name).or_else(|| self.scales.get(name)) else { return Ok(None) };
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

    /// One token for each sequence. A single one in a step of several says of none whose it is.
    fn read_sampled(&self) -> Result<Vec<Option<i64>>, Error> {
        let Some(tokens) = self.integers("sampled", None)? else { return Ok(vec![]) };
        let sequences = self.sequences().len();
        match tokens.as_slice() {
            [_] if sequences > 1 => Ok(vec![]),
            tokens if tokens.len() != sequences => Err(self.wrong(
                "sampled",
                &format!(
                    "has {} elements; the step has {sequences} sequences: give one token for each, in the order in which \
                     they first appear, -1 where none was chosen",
                    tokens.len()
                ),
            )),
            tokens => Ok(tokens.iter().map(|&t| (t != -1).then_some(t)).collect()),
        }
    }

    fn read_logits_rows(&self) -> Result<Option<Vec<usize>>, Error> {
        let Some(rows) = self.integers("logits_rows", None)? else { return Ok(None) };
        let all = self.token_ids.len();
        let row = |&r: &i64| usize::try_from(r).ok().filter(|r| *r < all);
        let found: Option<Vec<usize>> = rows.iter().map(row).collect();
        match found {
            Some(found) if !found.is_empty() && found.is_sorted_by(|a, b| a < b) => Ok(Some(found)),
            Some(_) => {
                Err(self.wrong("logits_rows", "does not list rows of the step in ascending order, each once"))
            }
            None => {
                Err(self
                    .wrong("logits_rows", &format!("names a row that the step does not have; it has {all}")))
            }
        }
    }

    fn read_forks(&self) -> Result<Vec<Fork>, Error> {
        let Some(info) = self.taps.get("fork") else { return Ok(vec![]) };
        let shape = info.shape.clone();
        let numbers = self.integers("fork", None)?.unwrap_or_default();
        if !matches!(shape[..], [_, 3] | [3]) {
            return Err(
                self.wrong("fork", &format!("has shape {shape:?}; expected n x 3: sequence, parent, length"))
            );
        }
        let mut forks: Vec<Fork> = Vec::new();
        for triple in numbers.chunks_exact(3) {
            let &[sequence, parent, length] = triple else { continue };
            let Ok(length) = u32::try_from(length) else {
                return Err(
                    self.wrong("fork", &format!("shares {length} keys; lengths lie between 0 and 2^32 - 1"))
                );
            };
            if sequence == parent || forks.iter().any(|f| f.sequence == sequence) {
                return Err(self.wrong(
                    "fork",
                    &format!("gives sequence {sequence} itself or two others as its parent; a sequence forks from one other"),
                ));
            }
            forks.push(Fork { sequence, parent, length });
        }
        Ok(forks)
    }

    fn read_key_axes(&self) -> Result<KeyAxes, Error> {
        let layers: BTreeSet<usize> = self
            .taps
            .keys()
            .filter_map(|name| match tap::split(name) {
                (Some(layer), rest) if RESERVED_IN_LAYERS.contains(&rest) => Some(layer),
                _ => None,
            })
            .collect();
        let mut axes = KeyAxes { step: self.read_key_axis("")?, ..KeyAxes::default() };
        for layer in layers {
            if let Some(axis) = self.read_key_axis(&tap::in_layer(layer, ""))? {
                axes.layers.insert(layer, axis);
            }
        }
        Ok(axes)
    }

    /// The axis that the tensors with this prefix describe.
    fn read_key_axis(&self, prefix: &str) -> Result<Option<KeyAxis>, Error> {
        let (of, at) = (format!("{prefix}key_sequence"), format!("{prefix}key_position"));
        let Some(positions) = self.integers(&at, None)? else {
            return match self.taps.contains_key(&of) {
                true => {
                    Err(self
                        .wrong(&of, &format!("says whose keys they are, but '{at}' is missing; give both")))
                }
                false => Ok(None),
            };
        };
        let sequences = match (self.integers(&of, Some(positions.len()))?, self.sequences().as_slice()) {
            (Some(sequences), _) => sequences,
            (None, [only]) => vec![*only; positions.len()],
            (None, _) => {
                return Err(self.wrong(&at, &format!("is of several sequences; give '{of}' too (I64, K)")));
            }
        };
        let key = |(&sequence, &position): (&i64, &i64)| match (sequence, position) {
            (-1, _) | (_, -1) => Ok(None),
            (_, p) if (0..i64::from(u32::MAX)).contains(&p) => Ok(Some(Key { sequence, position: p as u32 })),
            (_, p) => Err(self.wrong(
                &at,
                &format!("holds {p}; positions lie between 0 and 2^32 - 2, -1 is an empty slot"),
            )),
        };
        let axis: Vec<Option<Key>> = sequences.iter().zip(&positions).map(key).collect::<Result<_, _>>()?;
        let mut seen = HashSet::with_capacity(axis.len());
        if let Some(twice) = axis.iter().flatten().find(|key| !seen.insert(**key)) {
            let Key { sequence, position } = twice;
            return Err(self.wrong(
                &at,
                &format!("lists position {position} of sequence {sequence} twice; a slot that is not read any more is -1"),
            ));
        }
        Ok(Some(axis.into()))
    }

    fn wrong(&self, tensor: &str, reason: &str) -> Error {
        Error::Tensor { path: self.path.clone(), tensor: tensor.to_string(), reason: reason.to_string() }
    }
}
