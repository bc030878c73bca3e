//! Weights: mapped, dequantised when used, kept while a memory budget lasts.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use firstdiff_checkpoint::{Checkpoint, Misreading, Storage, TensorInfo};
use firstdiff_model::Program;
use firstdiff_model::ops::Slice;
use firstdiff_tensor::{Float, Real};
use rayon::prelude::*;

use crate::Error;
use crate::arithmetic::Arithmetic;
use crate::matmul::{self, RowSource};

/// Gives the weights of a checkpoint to operations.
#[derive(Debug)]
pub struct Weights<'m> {
    checkpoint: &'m Checkpoint,
    round: Option<Float>,
    /// The format of constants that are multiplied with: f32 at the longest.
    factor: Float,
    budget: usize,
    used: Arc<AtomicUsize>,
    kept: Arc<Mutex<HashMap<String, Arc<Vec<f32>>>>>,
    /// Names of weights that are not rounded.
    wide: Arc<HashSet<String>>,
    /// Values used in place of the file's.
    edited: HashMap<String, Arc<Vec<f32>>>,
}

impl<'m> Weights<'m> {
    /// Weights of `checkpoint`, rounded to `format`; up to `budget` bytes are kept dequantised.
    pub fn new(checkpoint: &'m Checkpoint, format: Float, budget: usize) -> Weights<'m> {
        let round = matches!(format, Float::BF16 | Float::F16).then_some(format);
        Weights {
            checkpoint,
            round,
            factor: round.unwrap_or(Float::F32),
            budget,
            used: Arc::default(),
            kept: Arc::default(),
            wide: Arc::default(),
            edited: HashMap::new(),
        }
    }

    /// Weights of `checkpoint` as an engine with this arithmetic holds them for `program`.
    pub fn held(
        checkpoint: &'m Checkpoint,
        arithmetic: &Arithmetic,
        program: &Program,
        budget: usize,
    ) -> Weights<'m> {
        let factor = match arithmetic.factor_format() {
            Float::F64 => Float::F32,
            format => format,
        };
        Weights { factor, ..Weights::new(checkpoint, arithmetic.weights, budget).of(program) }
    }

    /// The same, where those that `program` holds in f32 are not rounded.
    #[must_use]
    pub fn of(self, program: &Program) -> Weights<'m> {
        let wide = program.wide_weights().into_iter().map(String::from).collect();
        Weights { wide: Arc::new(wide), ..self }
    }

    /// The same weights with some replaced; those have the file's shapes. What is kept is shared.
    pub fn edited(&self, edited: HashMap<String, Arc<Vec<f32>>>) -> Weights<'m> {
        let Weights { checkpoint, round, factor, budget, ref used, ref kept, ref wide, .. } = *self;
        let (used, kept, wide) = (used.clone(), kept.clone(), wide.clone());
        Weights { checkpoint, round, factor, budget, used, kept, wide, edited }
    }

    /// A whole weight, as operations use it.
    ///
    /// # Errors
    /// When the checkpoint lacks it or it cannot be read.
    pub fn whole(&self, name: &str) -> Result<Arc<Vec<f32>>, Error> {
        let info = self.info(name)?;
        if let Some(values) = self.keep(info)? {
            return Ok(values);
        }
        let mut values = self.checkpoint.read(info)?;
        self.round(name, &mut values);
        Ok(Arc::new(values))
    }

    /// The shape of a weight; `None` where the checkpoint lacks it.
    pub fn shape(&self, name: &str) -> Option<&'m [usize]> {
        self.checkpoint.tensor(name).map(|t| t.shape.as_slice())
    }

    fn info(&self, name: &str) -> Result<&'m TensorInfo, Error> {
        self.checkpoint.tensor(name).ok_or_else(|| Error::MissingWeight { name: name.to_string() })
    }

    /// A whole weight, had the file other bytes for it (see [`Checkpoint::read_edited`]), before it is rounded
    /// to the format that operations use.
    ///
    /// # Errors
    /// When the checkpoint lacks it or it cannot be read.
    pub fn decoded(&self, name: &str, edit: impl FnOnce(&mut [u8])) -> Result<Vec<f32>, Error> {
        Ok(self.checkpoint.read_edited(self.info(name)?, edit)?)
    }

    /// A whole weight as an engine has it that reads its parts wrongly (see [`Checkpoint::misread`]), as operations use
    /// it.
    ///
    /// # Errors
    /// When the checkpoint lacks it or it cannot be read.
    pub fn misread(&self, name: &str, how: Misreading) -> Result<Option<Vec<f32>>, Error> {
        let mut values = self.checkpoint.misread(self.info(name)?, how)?;
        if let Some(values) = &mut values {
            self.round(name, values);
        }
        Ok(values)
    }

    /// The name of the format in which the file stores a weight.
    pub fn format(&self, name: &str) -> Option<&'static str> {
        self.checkpoint.tensor(name).map(|t| t.storage.name())
    }

    /// Rounds values to the format that operations use for a weight.
    pub fn loaded(&self, name: &str, mut values: Vec<f32>) -> Vec<f32> {
        self.round(name, &mut values);
        values
    }

    /// How the file stores this weight.
    pub(crate) fn storage(&self, name: &str) -> Result<Storage, Error> {
        Ok(self.info(name)?.storage)
    }

    /// A constant of the model that values are multiplied with, as engines hold it: in the longer of the formats of
    /// weights and activations, f32 at the longest.
    pub(crate) fn constant<T: Real>(&self, x: f64) -> T {
        T::from_f64(self.factor.round(x))
    }

    /// A small weight, whole.
    pub(crate) fn vector<T: Real>(&self, name: &str) -> Result<Vec<T>, Error> {
        let info = self.info(name)?;
        let kept = self.keep(info)?;
        let values = match &kept {
            Some(values) => values.iter().map(|&x| T::from_f32(x)).collect(),
            None => {
                let mut values = self.checkpoint.read(info)?;
                self.round(name, &mut values);
                values.into_iter().map(T::from_f32).collect()
            }
        };
        Ok(values)
    }

    /// Chosen rows of a matrix, one after another.
    ///
    /// # Errors
    /// When the checkpoint lacks it or a row cannot be read.
    pub fn rows<T: Real>(&self, name: &str, rows: impl Iterator<Item = usize>) -> Result<Vec<T>, Error> {
        let info = self.info(name)?;
        let width = info.shape.iter().skip(1).product();
        let mut buffer = vec![0f32; width];
        let mut out = Vec::new();
        let edited = self.edited.get(name);
        for row in rows {
            if let Some(values) = edited {
                out.extend(values[row * width..(row + 1) * width].iter().map(|&x| T::from_f32(x)));
                continue;
            }
            self.checkpoint.read_rows(info, row..row + 1, &mut buffer)?;
            self.round(name, &mut buffer);
            out.extend(buffer.iter().map(|&x| T::from_f32(x)));
        }
        Ok(out)
    }

    /// Chosen rows of a table of whole numbers, never rounded.
    pub(crate) fn whole_numbers<T: Real>(
        &self,
        name: &str,
        rows: impl Iterator<Item = usize>,
    ) -> Result<Vec<T>, Error> {
        let info = self.info(name)?;
        let width = info.row_len();
        let mut buffer = vec![0f32; width];
        let mut out = Vec::new();
        let edited = self.edited.get(name);
        for row in rows {
            if let Some(values) = edited.and_then(|v| v.get(row * width..(row + 1) * width)) {
                out.extend(values.iter().map(|&x| T::from_f32(x)));
                continue;
            }
            self.checkpoint.read_rows(info, row..row + 1, &mut buffer)?;
            out.extend(buffer.iter().map(|&x| T::from_f32(x)));
        }
        Ok(out)
    }

    /// `x w^T`, with `map` applied to each weight.
    pub(crate) fn product<T: Real>(
        &self,
        name: &str,
        x: &[T],
        map: Option<fn(f32) -> f32>,
    ) -> Result<Vec<T>, Error> {
        self.with_rows(name, |shape, rows| matmul::with_weight(x, shape, rows, map))
    }

    /// Products of groups: row `t` of `x` holds one part for each group, and the weight one matrix for
    /// each, one below the other. `[T, rows of the weight]`.
    pub(crate) fn grouped_product<T: Real>(
        &self,
        name: &str,
        x: &[T],
        groups: usize,
        map: Option<fn(f32) -> f32>,
    ) -> Result<Vec<T>, Error> {
        self.with_rows(name, |(n, k), source| {
            let (rows, tokens) = (n / groups, x.len() / (groups * k).max(1));
            let mut out = vec![T::ZERO; tokens * n];
            for group in 0..groups {
                let part: Vec<T> = x
                    .chunks(groups * k)
                    .flat_map(|x| x[group * k..(group + 1) * k].iter().copied())
                    .collect();
                let source = Below { source, first: group * rows };
                let y = matmul::with_weight(&part, (rows, k), &source, map)?;
                for (out, y) in out.chunks_mut(n).zip(y.chunks(rows)) {
                    out[group * rows..(group + 1) * rows].copy_from_slice(y);
                }
            }
            Ok(out)
        })
    }

    /// `y w`: the transposed product.
    pub(crate) fn transposed_product(&self, name: &str, y: &[f32]) -> Result<Vec<f32>, Error> {
        self.with_rows(name, |shape, rows| matmul::with_transposed_weight(y, shape, rows))
    }

    /// One expert's matrix, dequantised as a whole and not kept: of many experts few are used.
    pub(crate) fn matrix(&self, slice: &Slice) -> Result<Matrix<'m>, Error> {
        let info = self.info(&slice.tensor)?;
        let width = info.row_len().max(1);
        let rows = slice.first..slice.first + slice.rows;
        if let Some(part) =
            self.edited.get(&slice.tensor).and_then(|v| v.get(rows.start * width..rows.end * width))
        {
            return Ok(Matrix { values: Cow::Owned(part.to_vec()), width, storage: info.storage });
        }
        if self.rounding(&slice.tensor).is_none()
            && let Some(whole) = self.checkpoint.mapped_f32(info)
            && let Some(part) = whole.get(rows.start * width..rows.end * width)
        {
            return Ok(Matrix { values: Cow::Borrowed(part), width, storage: info.storage });
        }
        let mut values = vec![0f32; slice.rows * width];
        let piece = (256 * 1024 / width).max(1);
        values.par_chunks_mut(piece * width).enumerate().try_for_each(|(i, out)| {
            let first = rows.start + i * piece;
            self.checkpoint.read_rows(info, first..first + out.len() / width, out)?;
            self.round(&slice.tensor, out);
            Ok::<(), Error>(())
        })?;
        Ok(Matrix { values: Cow::Owned(values), width, storage: info.storage })
    }

    /// Hands a weight `[n, k]` to `f`, wherever it lies.
    fn with_rows<R>(
        &self,
        name: &str,
        f: impl FnOnce((usize, usize), &Rows<'_, 'm>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let info = self.info(name)?;
        let (n, k) = (info.shape.first().copied().unwrap_or(1), info.shape.iter().skip(1).product::<usize>());
        let kept = self.keep(info)?;
        let mapped = if self.rounding(name).is_none() { self.checkpoint.mapped_f32(info) } else { None };
        let whole = kept.as_ref().map(|v| v.as_slice()).or(mapped);
        f((n, k), &Rows { weights: self, info, whole, width: k })
    }

    /// The dequantised weight, if it is or can be kept. What is mapped as f32 already needs no copy.
    fn keep(&self, info: &TensorInfo) -> Result<Option<Arc<Vec<f32>>>, Error> {
        // A panic in another thread leaves whole entries only: the map is still good.
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = self.edited.get(&info.name) {
            return Ok(Some(values.clone()));
        }
        if let Some(values) = lock().get(&info.name) {
            return Ok(Some(values.clone()));
        }
        let bytes = info.len() * size_of::<f32>();
        let mapped = self.rounding(&info.name).is_none() && self.checkpoint.mapped_f32(info).is_some();
        let taken = self.used.fetch_add(bytes, Ordering::Relaxed);
        if mapped || taken.saturating_add(bytes) > self.budget {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Ok(None);
        }
        let mut values = vec![0f32; info.len()];
        let width = info.row_len().max(1);
        let rows = (256 * 1024 / width).max(1);
        values.par_chunks_mut(rows * width).enumerate().try_for_each(|(i, out)| {
            self.checkpoint.read_rows(info, i * rows..i * rows + out.len() / width, out)?;
            self.round(&info.name, out);
            Ok::<(), Error>(())
        })?;
        let values = Arc::new(values);
        if lock().insert(info.name.clone(), values.clone()).is_some() {
            // Another thread did the same meanwhile.
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(Some(values))
    }

    /// The format to which a weight is rounded.
    fn rounding(&self, name: &str) -> Option<Float> {
        self.round.filter(|_| !self.wide.contains(name))
    }

    fn round(&self, name: &str, values: &mut [f32]) {
        if let Some(format) = self.rounding(name) {
            values.iter_mut().for_each(|x| *x = format.round(f64::from(*x)) as f32);
        }
    }
}

/// A dequantised matrix.
pub(crate) struct Matrix<'m> {
    values: Cow<'m, [f32]>,
    width: usize,
    storage: Storage,
}

impl Matrix<'_> {
    /// How the file stores it.
    pub(crate) fn storage(&self) -> Storage {
        self.storage
    }

    /// `x w^T`, with `map` applied to each weight.
    pub(crate) fn product<T: Real>(&self, x: &[T], map: Option<fn(f32) -> f32>) -> Result<Vec<T>, Error> {
        matmul::with_weight(x, (self.values.len() / self.width, self.width), self, map)
    }
}

impl RowSource for Matrix<'_> {
    fn rows<'a>(&'a self, rows: Range<usize>, _buffer: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        Ok(&self.values[rows.start * self.width..rows.end * self.width])
    }
}

/// A weight as a source of rows.
struct Rows<'w, 'm> {
    weights: &'w Weights<'m>,
    info: &'m TensorInfo,
    whole: Option<&'w [f32]>,
    width: usize,
}

impl RowSource for Rows<'_, '_> {
    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        if let Some(whole) = self.whole {
            return Ok(&whole[rows.start * self.width..rows.end * self.width]);
        }
        buffer.resize(rows.len() * self.width, 0.0);
        self.weights.checkpoint.read_rows(self.info, rows, buffer)?;
        self.weights.round(&self.info.name, buffer);
        Ok(buffer)
    }
}

/// The rows of a source from `first` on.
struct Below<'s, S> {
    source: &'s S,
    first: usize,
}

impl<S: RowSource> RowSource for Below<'_, S> {
    fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        self.source.rows(rows.start + self.first..rows.end + self.first, buffer)
    }
}
