//! Quantised weights of safetensors folders, whose scales are tensors of their own.
//!
//! A folder is read in three steps: what the configuration says of its quantisation ([`Declared`]), which stored
//! tensors make one weight ([`join`]), and a range of rows at a time, the values, one file a format.
//!
//! Names and element types say what a tensor is; values never do. Two packages store factors that are each other's
//! reciprocals, and no magnitude tells them apart.

mod declared;
mod fp8;
mod join;
mod misread;
mod mxfp4;
mod nvfp4;
pub(crate) mod small;

use std::ops::Range;

use crate::{Storage, values};

pub(crate) use declared::Declared;
pub(crate) use join::join;

/// Where the scales of a weight are, and which elements each is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scales {
    /// The tensor's name in the file.
    pub(crate) name: String,
    /// Its shape in the file, for the fingerprint.
    pub(crate) shape: Vec<usize>,
    /// Its bytes.
    pub(crate) at: Stored,
    /// Rows of the weight that share a scale, and columns.
    pub(crate) block: (usize, usize),
    /// Rows of a weight's last two axes: where a new expert begins, a new block does.
    pub(crate) rows: usize,
    /// Scales for these rows: down, and along.
    pub(crate) grid: (usize, usize),
    /// The factor that comes on top, in NVFP4.
    pub(crate) global: Option<Global>,
}

/// A stored tensor's place and element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) part: usize,
    pub(crate) bytes: Range<usize>,
    pub(crate) storage: Storage,
}

/// A factor for a whole matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Global {
    pub(crate) name: String,
    pub(crate) at: Stored,
    /// One for each matrix of a weight with three axes, rather than one for all.
    pub(crate) each: bool,
    /// Scales are divided by it instead of multiplied.
    pub(crate) divides: bool,
}

/// The bytes of a weight and of what scales it.
pub(crate) struct Bytes<'a> {
    pub(crate) packed: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) global: &'a [u8],
}

/// Why rows cannot be given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The bytes end before the rows do.
    Outside,
    /// A scale is not a number: its place in the grid.
    NanScale { row: usize, column: usize },
    /// The factor on top is not a positive number.
    Factor,
}

/// Writes rows of a weight of `width` columns to `out`.
pub(crate) fn read_rows(
    storage: Storage,
    scales: &Scales,
    bytes: &Bytes,
    width: usize,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), Unreadable> {
    if width == 0 {
        return Ok(());
    }
    let row_bytes = storage.bytes_of(width).ok_or(Unreadable::Outside)?;
    let (mut line, mut held) = (Vec::new(), None);
    let mut factor = (usize::MAX, 1.0);
    for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
        let packed = row_bytes.checked_mul(row).and_then(|start| bytes.packed.get(start..start + row_bytes));
        let packed = packed.ok_or(Unreadable::Outside)?;
        let (matrix, within) = (row / scales.rows.max(1), row % scales.rows.max(1));
        if let Some(global) = &scales.global
            && factor.0 != matrix
        {
            factor = (matrix, global.read(bytes.global, matrix)?);
        }
        let of = matrix * scales.grid.0 + within / scales.block.0.max(1);
        if held != Some(of) {
            scales.line(bytes.scales, of, &mut line)?;
            if let Some(global) = &scales.global {
                line.iter_mut().for_each(|scale| global.apply(scale, factor.1));
            }
            held = Some(of);
        }
        match storage {
            Storage::ScaledMxfp4 => mxfp4::dequantise(packed, &line, out),
            Storage::ScaledNvfp4 => nvfp4::dequantise(packed, &line, out),
            _ => fp8::dequantise(packed, &line, scales.block.1, out),
        }
    }
    Ok(())
}

/// A way in which engines get quantised weights wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misreading {
    /// The high nibble of a byte is taken for the first element.
    HighNibbleFirst,
    /// Low nibbles are taken for a block's first half, high ones for its second.
    SplitHalves,
    /// 4-bit codes are taken for whole numbers in two's complement.
    TwosComplement,
    /// Bytes are signed when four of them are put together into a word: those after a negative one are all ones.
    SignExtended,
    /// The table of scales is read transposed.
    ScalesTransposed,
    /// Scales that are stored row by row are read in the tiled order of tensor cores.
    ScalesSwizzled,
    /// Scales that were brought into that order are read row by row.
    ScalesFlat,
    /// Codes are used without scales.
    ScaleMissing,
    /// Scales are applied twice.
    ScaleTwice,
    /// One scale is used for all of a matrix: the first.
    FirstScale,
    /// So many elements (rows and columns, where blocks have rows) share a scale.
    Block(usize),
    /// The factor on top is its reciprocal.
    FactorInverted,
    /// The factor on top is not applied.
    FactorMissing,
    /// All matrices have the factor of the first.
    FirstFactor,
}

/// All values of a weight under a misreading; None where it does not apply.
pub(crate) fn misread(
    storage: Storage,
    scales: &Scales,
    bytes: &Bytes,
    size: (usize, usize),
    how: Misreading,
) -> Result<Option<Vec<f32>>, Unreadable> {
    misread::read(storage, scales, bytes, size, how)
}

impl Scales {
    /// Reads line `row` of the grid.
    fn line(&self, bytes: &[u8], row: usize, line: &mut Vec<f32>) -> Result<(), Unreadable> {
        let along = self.grid.1;
        line.resize(along, 0.0);
        let start = row.checked_mul(along).ok_or(Unreadable::Outside)?;
        if self.at.storage == Storage::U8 {
            // A container for powers of two.
            let codes = bytes.get(start..start + along).ok_or(Unreadable::Outside)?;
            line.iter_mut().zip(codes).for_each(|(scale, &code)| *scale = small::e8m0(code));
        } else {
            values::read(self.at.storage, bytes, start..start + along, line).ok_or(Unreadable::Outside)?;
        }
        match line.iter().position(|scale| scale.is_nan()) {
            Some(column) => Err(Unreadable::NanScale { row, column }),
            None => Ok(()),
        }
    }
}

impl Global {
    fn read(&self, bytes: &[u8], matrix: usize) -> Result<f32, Unreadable> {
        let (at, mut value) = (if self.each { matrix } else { 0 }, [0.0]);
        values::read(self.at.storage, bytes, at..at + 1, &mut value).ok_or(Unreadable::Outside)?;
        if value[0].is_finite() && value[0] > 0.0 { Ok(value[0]) } else { Err(Unreadable::Factor) }
    }

    fn apply(&self, scale: &mut f32, factor: f32) {
        if self.divides {
            *scale /= factor;
        } else {
            *scale *= factor;
        }
    }
}
