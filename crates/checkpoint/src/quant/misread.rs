//! What a weight becomes when its parts are read wrongly: for whoever asks what an engine did.

use super::small::e8m0;
use super::{Bytes, Scales, Unreadable, fp8, mxfp4, nvfp4};
use crate::{Misreading, Storage, values};

/// All values of a weight `[.., rows, width]` under a misreading. None where it does not apply to this format, or reads
/// past the scales.
pub(super) fn read(
    storage: Storage,
    scales: &Scales,
    bytes: &Bytes,
    (rows, width): (usize, usize),
    how: Misreading,
) -> Result<Option<Vec<f32>>, Unreadable> {
    let four_bits = storage != Storage::ScaledFp8;
    let fits = match how {
        Misreading::HighNibbleFirst
        | Misreading::SplitHalves
        | Misreading::TwosComplement
        | Misreading::SignExtended => four_bits,
        Misreading::FactorInverted | Misreading::FactorMissing | Misreading::FirstFactor => {
            scales.global.is_some()
        }
        _ => true,
    };
    if !fits || width == 0 || !rows.is_multiple_of(scales.rows.max(1)) {
        return Ok(None);
    }
    let factors = factors(scales, bytes, rows, how)?;
    let row_bytes = storage.bytes_of(width).ok_or(Unreadable::Outside)?;
    let mut out = vec![0.0; rows * width];
    let (mut line, mut packed) = (Vec::new(), Vec::new());
    let grid = Grid { scales, all: all_scales(scales, bytes, rows)?, how };
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        let stored = bytes.packed.get(row * row_bytes..(row + 1) * row_bytes).ok_or(Unreadable::Outside)?;
        packed.clear();
        packed.extend(stored.iter().map(|&byte| match how {
            Misreading::HighNibbleFirst => byte.rotate_left(4),
            _ => byte,
        }));
        if how == Misreading::SplitHalves {
            split_halves(&mut packed, storage.block_bytes());
        } else if how == Misreading::SignExtended {
            packed.chunks_mut(4).for_each(sign_extended);
        }
        let (matrix, within) = (row / scales.rows.max(1), row % scales.rows.max(1));
        let along = grid.along(width);
        line.clear();
        for column in 0..width.div_ceil(along) {
            let Some(scale) = grid.at(matrix, within, column) else { return Ok(None) };
            line.push(match (&scales.global, factors.get(matrix)) {
                (Some(global), Some(&factor)) if factor != 0.0 => {
                    let mut scale = scale;
                    global.apply(&mut scale, factor);
                    scale
                }
                _ => scale,
            });
        }
        if how == Misreading::TwosComplement {
            signed(&packed, &line, along, out);
        } else if !four_bits {
            fp8::dequantise(&packed, &line, along, out);
        } else {
            // Blocks as the format has them, whatever runs of them share a scale.
            let of: Vec<f32> = (0..width / storage.block_len())
                .map(|block| line[(block * storage.block_len() / along).min(line.len() - 1)])
                .collect();
            if storage == Storage::ScaledMxfp4 {
                mxfp4::dequantise(&packed, &of, out);
            } else {
                nvfp4::dequantise(&packed, &of, out);
            }
        }
    }
    Ok(Some(out))
}

/// The factor of each matrix; 0 where none is applied.
fn factors(scales: &Scales, bytes: &Bytes, rows: usize, how: Misreading) -> Result<Vec<f32>, Unreadable> {
    let Some(global) = &scales.global else { return Ok(vec![]) };
    let of = |matrix: usize| {
        let factor = global.read(bytes.global, if how == Misreading::FirstFactor { 0 } else { matrix })?;
        Ok(match how {
            Misreading::FactorMissing => 0.0,
            Misreading::FactorInverted => 1.0 / factor,
            _ => factor,
        })
    };
    (0..rows / scales.rows.max(1)).map(of).collect()
}

fn all_scales(scales: &Scales, bytes: &Bytes, rows: usize) -> Result<Vec<f32>, Unreadable> {
    let count = rows / scales.rows.max(1) * scales.grid.0 * scales.grid.1;
    let mut all = vec![0.0; count];
    if scales.at.storage == Storage::U8 {
        let codes = bytes.scales.get(..count).ok_or(Unreadable::Outside)?;
        all.iter_mut().zip(codes).for_each(|(scale, &code)| *scale = e8m0(code));
    } else {
        values::read(scales.at.storage, bytes.scales, 0..count, &mut all).ok_or(Unreadable::Outside)?;
    }
    Ok(all)
}

/// Low nibbles are the first half of a block, high ones the second: as GGUF has it.
fn split_halves(packed: &mut [u8], block: usize) {
    for bytes in packed.chunks_exact_mut(block) {
        let codes: Vec<u8> = bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4)).collect();
        for (byte, pair) in bytes.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = pair[0] | pair[1] << 4;
        }
    }
}

/// What a word's bytes become when each was extended with its sign before they were put together.
fn sign_extended(word: &mut [u8]) {
    let mut sign = 0;
    for byte in word {
        let above = if *byte < 0x80 { sign } else { 0xff };
        *byte |= sign;
        sign = above;
    }
}

/// Codes as whole numbers from -8 to 7.
fn signed(packed: &[u8], line: &[f32], along: usize, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let code = packed[i / 2] >> (4 * (i % 2)) & 15;
        *out = f32::from((code << 4) as i8 >> 4) * line[i / along];
    }
}

/// The scales as they are misread.
struct Grid<'a> {
    scales: &'a Scales,
    /// All of them, as stored.
    all: Vec<f32>,
    how: Misreading,
}

impl Grid<'_> {
    /// Columns that share a scale.
    fn along(&self, width: usize) -> usize {
        let along = self.scales.block.1.max(1);
        match self.how {
            Misreading::Block(wanted) => match self.scales.block.0 {
                1 => wanted,
                _ => along * wanted / self.scales.block.0.max(1),
            }
            .max(1),
            _ => along.min(width.max(1)),
        }
    }

    /// The scale of block `column` in row `within` of a matrix.
    fn at(&self, matrix: usize, within: usize, column: usize) -> Option<f32> {
        let (down, along) = self.scales.grid;
        let row = within / self.scales.block.0.max(1);
        let start = matrix * down * along;
        let at = match self.how {
            Misreading::ScaleMissing => return Some(1.0),
            Misreading::FirstScale => start,
            Misreading::ScalesTransposed => start + column * down + row,
            // The order of tensor cores: tiles of 128 rows and 4 columns.
            Misreading::ScalesSwizzled => {
                let tiles = along.div_ceil(4);
                let tile = row / 128 * tiles + column / 4;
                start + tile * 512 + row % 32 * 16 + row / 32 % 4 * 4 + column % 4
            }
            // The inverse: element `at` of the tiles. Tiles are whole, with zeros where there are no scales.
            Misreading::ScalesFlat => {
                let (at, tiles) = (row * along + column, along.div_ceil(4));
                let (tile, within) = (at / 512, at % 512);
                let row = tile / tiles * 128 + within / 16 + within % 16 / 4 * 32;
                let column = tile % tiles * 4 + within % 4;
                if row >= down || column >= along {
                    return Some(0.0);
                }
                start + row * along + column
            }
            // Each row of scales is as long as stored, and its first ones are used.
            Misreading::Block(wanted) if self.scales.block.0 > 1 => {
                return self.all.get(start + within / wanted * along + column).copied();
            }
            _ => start + row * along + column,
        };
        let scale = self.all.get(at).copied()?;
        Some(if self.how == Misreading::ScaleTwice { scale * scale } else { scale })
    }
}
