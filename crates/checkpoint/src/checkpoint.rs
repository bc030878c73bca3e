//! An opened model.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use crate::gguf::{self, Metadata, permute};
use crate::quant::{self, Misreading, Scales, Stored, Unreadable};
use crate::residency::Residency;
use crate::{Config, Error, FolderFault, Generation, GgufFault, Storage, Tokenizer};
use crate::{fingerprint, folder, generation, tokenizer, values};

/// An opened model: a GGUF file, or a folder with `config.json` and safetensors.
///
/// The files stay mapped; they must not be changed meanwhile. All methods may be called from several threads.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Config,
    /// Sorted by name.
    tensors: Vec<TensorInfo>,
    /// Tensors of files that are not here, with those files: only of a checkpoint opened in part. Sorted.
    absent: BTreeMap<String, String>,
    parts: Vec<Mmap>,
    source: Source,
    tokenizer: OnceLock<Tokenizer>,
    residency: Residency,
}

/// The kind of file a model was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One GGUF file.
    Gguf,
    /// A folder with `config.json` and safetensors.
    SafeTensors,
}

#[derive(Debug)]
enum Source {
    Gguf(Metadata),
    Folder,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name that Hugging Face uses; the file's own name where there is no such.
    pub name: String,
    /// The name in the file.
    pub source_name: String,
    /// The shape as torch shows it: `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub storage: Storage,
    pub(crate) place: Place,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the checkpoint's files.
    pub(crate) part: usize,
    /// Where in it.
    pub(crate) bytes: Range<usize>,
    /// Rows per head, where the rows within heads are permuted.
    pub(crate) permuted_head_dim: Option<usize>,
    /// The scales, where they are a tensor of their own.
    pub(crate) scales: Option<Arc<Scales>>,
}

impl TensorInfo {
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in the file, those of scales included.
    pub fn stored_bytes(&self) -> usize {
        let scales =
            |s: &Arc<Scales>| s.at.bytes.len() + s.global.as_ref().map_or(0, |global| global.at.bytes.len());
        self.place.bytes.len() + self.place.scales.as_ref().map_or(0, scales)
    }

    /// Elements of one row: the last axis of a tensor with two axes or more, else 1.
    pub fn row_len(&self) -> usize {
        match self.shape.as_slice() {
            [_, .., last] => *last,
            _ => 1,
        }
    }

    /// Rows in all: a one-dimensional tensor of n elements has n rows of 1, a scalar one row of 1, and a
    /// tensor with three axes has as many rows as the product of the first two.
    pub fn rows(&self) -> usize {
        match self.shape.as_slice() {
            [first @ .., _] if !first.is_empty() => first.iter().product(),
            _ => self.len(),
        }
    }
}

/// Maps a file into memory.
pub(crate) fn map_file(path: &Path) -> Result<Mmap, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    // Opening a pipe would wait for whoever writes to it.
    if !path.metadata().map_err(io)?.is_file() {
        return Err(io(std::io::Error::other("not a regular file")));
    }
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is only read, as bytes, for which every value is valid. Should another process
    // change the file meanwhile, values change; should it cut the file, the system ends this process.
    // Model files are not edited in place, and copying gigabytes would defeat the purpose.
    unsafe { Mmap::map(&file) }.map_err(io)
}

impl Checkpoint {
    /// Opens the model at `path`.
    ///
    /// # Errors
    /// When there is no model, or it is malformed or unsupported; the error says what to do.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        Checkpoint::open_files(path, false)
    }

    /// Opens what is here of the model at `path`: shards of a folder may be missing, and
    /// [`Checkpoint::absent`] says which tensor is in which of them.
    ///
    /// # Errors
    /// When what is here is malformed or unsupported, or there is nothing.
    pub fn open_part(path: &Path) -> Result<Checkpoint, Error> {
        Checkpoint::open_files(path, true)
    }

    fn open_files(path: &Path, in_part: bool) -> Result<Checkpoint, Error> {
        if path.is_dir() {
            let folder = folder::open(path, in_part)?;
            let opened =
                Checkpoint::assemble(path, folder.config, folder.tensors, folder.parts, Source::Folder)?;
            return Ok(Checkpoint { absent: folder.absent, ..opened });
        }
        if !path.exists() {
            return Err(not_found(path));
        }
        let part = map_file(path)?;
        if !part.starts_with(gguf::MAGIC)
            && let Some(fault) = weights_file(path)
        {
            return Err(Error::Folder { path: path.to_path_buf(), fault: Box::new(fault) });
        }
        let gguf = gguf::open(path, &part).map_err(|fault| gguf_error(path, fault))?;
        Checkpoint::assemble(path, gguf.config, gguf.tensors, vec![part], Source::Gguf(gguf.metadata))
    }

    fn assemble(
        path: &Path,
        config: Config,
        mut tensors: Vec<TensorInfo>,
        parts: Vec<Mmap>,
        source: Source,
    ) -> Result<Checkpoint, Error> {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::NameClash {
                path: path.to_path_buf(),
                name: pair[0].name.clone(),
                first: pair[0].source_name.clone(),
                second: pair[1].source_name.clone(),
            });
        }
        let path = path.to_path_buf();
        Ok(Checkpoint {
            path,
            config,
            tensors,
            absent: BTreeMap::new(),
            parts,
            source,
            tokenizer: OnceLock::new(),
            residency: Residency::default(),
        })
    }

    /// The path the model was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of file.
    pub fn format(&self) -> Format {
        match self.source {
            Source::Gguf(_) => Format::Gguf,
            Source::Folder => Format::SafeTensors,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// Whether the model has a tensor of this name, here or in a file that is missing.
    pub fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some() || self.absent.contains_key(name)
    }

    /// The missing file that this tensor is in.
    pub fn absent(&self, name: &str) -> Option<&str> {
        self.absent.get(name).map(String::as_str)
    }

    /// How many tensors are in missing files.
    pub fn count_absent(&self) -> usize {
        self.absent.len()
    }

    /// Lets at most about this many bytes of the mapped files stay in memory: what was read leaves it when more
    /// is read. It is read from the files again when needed.
    pub fn bound_residency(&self, bytes: usize) {
        // Files that fit need not be read twice.
        if self.parts.iter().map(|part| part.len()).sum::<usize>() > bytes {
            self.residency.bound(bytes);
        }
    }

    /// The stored bytes of a tensor of this checkpoint.
    pub(crate) fn stored(&self, t: &TensorInfo) -> Result<&[u8], Error> {
        self.bytes(t.place.part, &t.place.bytes).ok_or_else(|| self.foreign(t))
    }

    fn bytes(&self, part: usize, range: &Range<usize>) -> Option<&[u8]> {
        self.parts.get(part).and_then(|part| part.get(range.clone()))
    }

    fn foreign(&self, t: &TensorInfo) -> Error {
        Error::ForeignTensor { tensor: t.name.clone(), path: self.path.clone() }
    }

    /// Writes the rows `rows` of a tensor, dequantised, to `out`, which holds `rows.len() * row_len` values.
    ///
    /// # Errors
    /// When the rows or the length of `out` do not fit the tensor.
    pub fn read_rows(&self, t: &TensorInfo, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let stored = self.stored(t)?;
        if rows.start > rows.end || rows.end > t.rows() {
            return Err(Error::Rows {
                tensor: t.name.clone(),
                from: rows.start,
                to: rows.end,
                rows: t.rows(),
            });
        }
        let row_len = t.row_len();
        let wanted = rows.len() * row_len;
        if out.len() != wanted {
            return Err(Error::OutputLength { tensor: t.name.clone(), wanted, given: out.len() });
        }
        self.residency.touched(t.stored_bytes() / t.rows().max(1) * rows.len(), &self.parts);
        if let Some(scales) = &t.place.scales {
            return self.read_scaled(t, stored, scales, rows, out);
        }
        let read = |row: usize, count: usize, out: &mut [f32]| {
            values::read(t.storage, stored, row * row_len..(row + count) * row_len, out)
                .ok_or_else(|| self.foreign(t))
        };
        let Some(head_dim) = t.place.permuted_head_dim else { return read(rows.start, rows.len(), out) };
        if row_len == 0 {
            return Ok(());
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            read(permute::stored_row(row, head_dim), 1, out)?;
        }
        Ok(())
    }

    /// The stored bytes of one row, in the file's own format; none where the row does not lie there as a whole.
    pub fn row_bytes(&self, t: &TensorInfo, row: usize) -> Option<&[u8]> {
        let size = t.storage.bytes_of(t.row_len())?;
        let row = t.place.permuted_head_dim.map_or(row, |head_dim| permute::stored_row(row, head_dim));
        self.stored(t).ok()?.get(row.checked_mul(size)?..(row + 1).checked_mul(size)?)
    }

    fn read_scaled(
        &self,
        t: &TensorInfo,
        packed: &[u8],
        scales: &Scales,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let bytes = self.parts_of(t, packed, scales)?;
        quant::read_rows(t.storage, scales, &bytes, t.row_len(), rows, out)
            .map_err(|unreadable| self.unreadable(t, scales, unreadable))
    }

    fn parts_of<'a>(
        &'a self,
        t: &TensorInfo,
        packed: &'a [u8],
        scales: &Scales,
    ) -> Result<quant::Bytes<'a>, Error> {
        let at = |s: &Stored| self.bytes(s.part, &s.bytes).ok_or_else(|| self.foreign(t));
        let global = scales.global.as_ref().map(|global| at(&global.at)).transpose()?;
        Ok(quant::Bytes { packed, scales: at(&scales.at)?, global: global.unwrap_or_default() })
    }

    fn unreadable(&self, t: &TensorInfo, scales: &Scales, unreadable: Unreadable) -> Error {
        let (path, tensor) = (self.path.clone(), t.name.clone());
        match unreadable {
            Unreadable::Outside => self.foreign(t),
            Unreadable::NanScale { row, column } => {
                Error::NanScale { path, tensor, scale: scales.name.clone(), row, column }
            }
            Unreadable::Factor => {
                let scale = scales.global.as_ref().map(|global| global.name.clone()).unwrap_or_default();
                Error::ScaleFactor { path, tensor, scale }
            }
        }
    }

    /// The whole tensor as an engine has it that reads its parts wrongly; None where that cannot happen to a tensor
    /// of its format.
    ///
    /// # Errors
    /// When the tensor is not one of this checkpoint.
    pub fn misread(&self, t: &TensorInfo, how: Misreading) -> Result<Option<Vec<f32>>, Error> {
        let packed = self.stored(t)?;
        let Some(scales) = &t.place.scales else { return Ok(None) };
        let bytes = self.parts_of(t, packed, scales)?;
        quant::misread(t.storage, scales, &bytes, (t.rows(), t.row_len()), how)
            .map_err(|unreadable| self.unreadable(t, scales, unreadable))
    }

    /// The whole tensor, dequantised.
    ///
    /// # Errors
    /// When the tensor is not one of this checkpoint.
    pub fn read(&self, t: &TensorInfo) -> Result<Vec<f32>, Error> {
        self.stored(t)?;
        let mut out = vec![0.0; t.len()];
        self.read_rows(t, 0..t.rows(), &mut out)?;
        Ok(out)
    }

    /// The whole tensor as it would be read, had the file other bytes for it: `edit` changes a copy of
    /// them, in whole blocks, one stored row after another.
    ///
    /// # Errors
    /// When the tensor is not one of this checkpoint.
    pub fn read_edited(&self, t: &TensorInfo, edit: impl FnOnce(&mut [u8])) -> Result<Vec<f32>, Error> {
        let mut stored = self.stored(t)?.to_vec();
        edit(&mut stored);
        let width = t.row_len();
        let mut out = vec![0.0; t.len()];
        if let Some(scales) = &t.place.scales {
            let bytes = self.parts_of(t, &stored, scales)?;
            quant::read_rows(t.storage, scales, &bytes, width, 0..t.rows(), &mut out)
                .map_err(|unreadable| self.unreadable(t, scales, unreadable))?;
            return Ok(out);
        }
        for (row, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            let at = t.place.permuted_head_dim.map_or(row, |dim| permute::stored_row(row, dim));
            values::read(t.storage, &stored, at * width..(at + 1) * width, out)
                .ok_or_else(|| self.foreign(t))?;
        }
        Ok(out)
    }

    /// The tensor's values in the mapped file itself, when they are stored as aligned little-endian
    /// binary32 in the order that [`Checkpoint::read`] gives, and residency is not bounded.
    pub fn mapped_f32(&self, t: &TensorInfo) -> Option<&[f32]> {
        if t.storage != Storage::F32 || t.place.permuted_head_dim.is_some() || cfg!(target_endian = "big") {
            return None;
        }
        // What is borrowed for long could not be made to leave memory.
        if self.residency.is_bounded() {
            return None;
        }
        // SAFETY: every bit pattern is a valid f32, and the result borrows the map it lies in.
        let (before, values, after) = unsafe { self.stored(t).ok()?.align_to::<f32>() };
        (before.is_empty() && after.is_empty()).then_some(values)
    }

    /// The tokenizer; built on the first call.
    ///
    /// # Errors
    /// When the model has none, or it cannot be used.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer.clone());
        }
        let built = match (&self.source, self.parts.first()) {
            (Source::Gguf(metadata), Some(file)) => tokenizer::from_gguf(&self.path, metadata, file)?,
            _ => tokenizer::from_folder(&self.path)?,
        };
        Ok(self.tokenizer.get_or_init(|| built).clone())
    }

    /// Stop tokens and the beginning-of-sequence token, by everything that the files declare.
    ///
    /// A file that is absent or malformed declares nothing: use [`Checkpoint::tokenizer`] to learn what is
    /// wrong with it.
    pub fn generation(&self) -> Generation {
        match (&self.source, self.parts.first()) {
            (Source::Gguf(metadata), Some(file)) => generation::from_gguf(metadata, file),
            _ => generation::from_folder(&self.path, &self.config, self.tokenizer().ok().as_ref()),
        }
    }

    /// A cheap, stable identity of the weights: 16 hexadecimal digits.
    ///
    /// A 64-bit FNV-1a hash over every tensor's name, shape and format in order of name, and of 64 stored
    /// bytes each at its start, middle and end. It tells checkpoints apart; it proves nothing to an
    /// adversary. The same weights in another format have another fingerprint.
    pub fn fingerprint(&self) -> String {
        let scales = |t: &TensorInfo| {
            // A sample brings in the pages around it.
            self.residency.touched(3 * 64 * 1024, &self.parts);
            let at = &t.place.scales.as_ref()?.at;
            self.bytes(at.part, &at.bytes)
        };
        fingerprint::of(self.tensors.iter().filter_map(|t| Some((t, self.stored(t).ok()?, scales(t)))))
    }
}

fn gguf_error(path: &Path, fault: GgufFault) -> Error {
    Error::Gguf { path: path.to_path_buf(), fault }
}

/// A path that does not exist: a hub name, if it looks like one.
fn not_found(path: &Path) -> Error {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    match path.to_str().and_then(|name| Some((name, name.split_once('/')?))) {
        Some((name, (owner, model))) if plain(owner) && plain(model) && !name.ends_with(".gguf") => {
            Error::HubName { name: name.to_owned() }
        }
        _ => Error::NotFound { path: path.to_path_buf() },
    }
}

/// What to say of a file that is no GGUF file, by its name.
fn weights_file(path: &Path) -> Option<FolderFault> {
    let file = path.file_name()?.to_string_lossy().into_owned();
    match path.extension()?.to_str()? {
        "safetensors" | "json" => Some(FolderFault::WeightsFile),
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => Some(FolderFault::Pickle { file }),
        _ => None,
    }
}
