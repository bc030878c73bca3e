//! The container: magic, version, metadata, tensor table.

use std::ops::Range;

use super::cursor::Cursor;
use super::metadata::{Metadata, Value};
use super::types::{self, GgmlType};
use crate::{GgufFault, Storage};

/// Everything before the tensor data, checked against the file.
#[derive(Clone, Debug)]
pub struct Header {
    /// The container's version, 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// The tensors in the order of the file.
    pub tensors: Vec<Entry>,
}

/// A tensor of the table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape in torch's order: the contiguous axis last.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub storage: Storage,
    /// Its bytes' position in the file.
    pub bytes: Range<usize>,
}

const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// A key's length, its type, and one byte of value.
const LEAST_METADATA: usize = 8 + 4 + 1;
/// A name's length, the count of axes, the type and the offset.
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// A table row before the data's start is known.
struct Row {
    name: String,
    shape: Vec<usize>,
    storage: Storage,
    offset: u64,
    length: usize,
}

impl Header {
    /// Reads the header of `file`, the whole file's bytes.
    ///
    /// # Errors
    /// When anything is malformed or does not lie in the file, or a tensor type cannot be read.
    pub fn parse(file: &[u8]) -> Result<Header, GgufFault> {
        let mut cursor = Cursor::new(file);
        let version = read_version(&mut cursor)?;
        let n_tensors = cursor.u64("the number of tensors")?;
        let n_metadata = cursor.count(LEAST_METADATA, "the number of metadata entries")?;

        let mut metadata = Metadata::default();
        for at in 0..n_metadata {
            let key = cursor.string(&format!("metadata key {at}"))?;
            let kind = Value::read_kind(&mut cursor, key)?;
            metadata.insert(key, Value::read(&mut cursor, kind, key)?)?;
        }
        refuse_split(&metadata)?;
        let alignment = read_alignment(&metadata)?;

        let room = cursor.left() / LEAST_TENSOR;
        let Some(n_tensors) = usize::try_from(n_tensors).ok().filter(|&n| n <= room) else {
            let what = "the number of tensors".to_owned();
            return Err(GgufFault::Count { what, count: n_tensors, left: cursor.left() });
        };
        let rows = (0..n_tensors).map(|at| read_row(&mut cursor, at)).collect::<Result<Vec<_>, _>>()?;

        let data_start = (cursor.position() as u64).next_multiple_of(alignment);
        let tensors = rows
            .into_iter()
            .map(|row| place(row, data_start, alignment, file.len()))
            .collect::<Result<Vec<_>, _>>()?;
        refuse_clashes(&tensors)?;
        Ok(Header { version, metadata, tensors })
    }
}

fn read_version(cursor: &mut Cursor) -> Result<u32, GgufFault> {
    let magic = cursor.take(4, "the file's first four bytes")?;
    if magic == b"FUGG" {
        return Err(GgufFault::BigEndian);
    }
    if magic != b"GGUF" {
        return Err(GgufFault::NotGguf { found: String::from_utf8_lossy(magic).into_owned() });
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufFault::BigEndian),
        version => Err(GgufFault::Version { version }),
    }
}

fn refuse_split(metadata: &Metadata) -> Result<(), GgufFault> {
    match metadata.unsigned("split.count")? {
        Some(count) if count > 1 => {
            let number = metadata.unsigned("split.no")?.unwrap_or(0);
            Err(GgufFault::Split { number: number.saturating_add(1), count })
        }
        _ => Ok(()),
    }
}

fn read_alignment(metadata: &Metadata) -> Result<u64, GgufFault> {
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    // The upper bound keeps rounding up from overflowing; ggml itself stores 32 bits.
    if !alignment.is_power_of_two() || alignment > u64::from(u32::MAX) {
        return Err(GgufFault::Alignment { alignment });
    }
    Ok(alignment)
}

fn read_row(cursor: &mut Cursor, at: usize) -> Result<Row, GgufFault> {
    let name = cursor.string(&format!("the name of tensor {at}"))?.to_owned();
    let n_dims = cursor.u32(&name)?;
    if n_dims > MAX_DIMS {
        return Err(GgufFault::Dimensions { tensor: name, n_dims });
    }
    let mut shape = Vec::with_capacity(MAX_DIMS as usize);
    for _ in 0..n_dims {
        let length = cursor.u64(&name)?;
        let Some(length) = usize::try_from(length).ok().filter(|&n| n > 0) else {
            return Err(GgufFault::AxisLength { tensor: name, length });
        };
        shape.push(length);
    }
    let number = cursor.u32(&name)?;
    let offset = cursor.u64(&name)?;
    let storage = match types::by_number(number) {
        Some(GgmlType::Known(storage)) => storage,
        Some(GgmlType::Unsupported(kind)) => {
            return Err(GgufFault::UnsupportedType { tensor: name, kind });
        }
        None => return Err(GgufFault::UnknownType { tensor: name, number }),
    };
    let row = shape.first().copied().unwrap_or(1);
    if !row.is_multiple_of(storage.block_len()) {
        return Err(GgufFault::RaggedRow { tensor: name, storage, row });
    }
    let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let Some(length) = elements.and_then(|n| storage.bytes_of(n)) else {
        return Err(GgufFault::TooManyElements { tensor: name });
    };
    shape.reverse();
    Ok(Row { name, shape, storage, offset, length })
}

fn place(row: Row, data_start: u64, alignment: u64, size: usize) -> Result<Entry, GgufFault> {
    if !row.offset.is_multiple_of(alignment) {
        return Err(GgufFault::Unaligned { tensor: row.name, offset: row.offset, alignment });
    }
    let start = data_start.checked_add(row.offset);
    let end = start.and_then(|start| start.checked_add(row.length as u64));
    match (start, end) {
        (Some(start), Some(end)) if end <= size as u64 => {
            let bytes = start as usize..end as usize;
            Ok(Entry { name: row.name, shape: row.shape, storage: row.storage, bytes })
        }
        _ => Err(GgufFault::PastEnd {
            tensor: row.name,
            from: start.unwrap_or(u64::MAX),
            to: end.unwrap_or(u64::MAX),
            size,
        }),
    }
}

/// No two tensors may share a name, nor bytes.
fn refuse_clashes(tensors: &[Entry]) -> Result<(), GgufFault> {
    let mut by_name: Vec<&Entry> = tensors.iter().collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = by_name.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(GgufFault::DuplicateTensor { tensor: pair[0].name.clone() });
    }
    let mut by_place = by_name;
    by_place.sort_by_key(|entry| entry.bytes.start);
    match by_place.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        Some(pair) => Err(GgufFault::Overlap { tensor: pair[0].name.clone(), other: pair[1].name.clone() }),
        None => Ok(()),
    }
}
