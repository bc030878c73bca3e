//! ggml's block formats, as far as hypotheses change their bytes. Files mix formats: each weight has its own.

use super::weight_dtype_misread::{half_bits, half_value};
use crate::Scene;
use crate::edit::Weight;
use firstdiff_model::OpKind;

/// Where the parts of a block lie.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    /// Elements of a block.
    pub len: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Its scales of 16 bits: for codes, and for minima where it has them.
    pub scales: &'static [usize],
    /// Bytes of two 4-bit codes each: where they start, and their number; none in other formats.
    pub nibbles: Option<(usize, usize)>,
    /// Bytes that hold codes, and the byte that makes each code count one scale.
    ones: &'static [(usize, usize, u8)],
    /// A scale for minima, at this place.
    minimum: Option<usize>,
}

/// The format of this name.
fn blocks(format: &str) -> Option<Blocks> {
    let with =
        |len, bytes, scales, nibbles, ones, minimum| Blocks { len, bytes, scales, nibbles, ones, minimum };
    Some(match format {
        "Q4_0" => with(32, 18, &[0], Some((2, 16)), &[(2, 18, 0x99)], None),
        "Q4_1" => with(32, 20, &[0, 2], Some((4, 16)), &[(4, 20, 0x11)], Some(2)),
        "Q5_0" => with(32, 22, &[0], None, &[(2, 6, 0xff), (6, 22, 0x11)], None),
        "Q5_1" => with(32, 24, &[0, 2], None, &[(4, 8, 0), (8, 24, 0x11)], Some(2)),
        "Q8_0" => with(32, 34, &[0], None, &[(2, 34, 1)], None),
        "Q4_K" => with(256, 144, &[0, 2], Some((16, 128)), &[(16, 144, 0x11)], Some(2)),
        "Q5_K" => with(256, 176, &[0, 2], None, &[(16, 48, 0), (48, 176, 0x11)], Some(2)),
        "Q6_K" => with(256, 210, &[208], None, &[(0, 128, 0x11), (128, 192, 0xaa)], None),
        _ => return None,
    })
}

impl Blocks {
    /// The blocks of the matrix that the segment multiplies by first, where it is in such a format.
    pub fn of(scene: &Scene) -> Option<Blocks> {
        let (_, op) = scene.find(|k| matches!(k, OpKind::Linear(_)))?;
        let (name, _) = op.kind.weights().into_iter().next()?;
        blocks(scene.format(name)?)
    }

    /// The blocks of a weight, if it is in such a format.
    pub fn of_weight(w: &Weight) -> Option<Blocks> {
        blocks(w.format()?)
    }

    /// A weight's values, had each block other bytes.
    pub fn edited(self, w: &Weight, f: impl Fn(&mut [u8])) -> Option<Vec<f32>> {
        w.decoded(|bytes| bytes.chunks_exact_mut(self.bytes).for_each(f))
    }

    /// What one step of each element's code counts.
    pub fn steps(self, w: &Weight) -> Option<Vec<f32>> {
        self.edited(w, |block| {
            for &(from, to, byte) in self.ones {
                block[from..to].fill(byte);
            }
            if let Some(at) = self.minimum {
                block[at..at + 2].fill(0);
            }
        })
    }

    /// A block's scales through `f`.
    pub fn scaled(self, block: &mut [u8], f: impl Fn(f32) -> f32) {
        for &at in self.scales {
            let scale = half_value(u16::from_le_bytes([block[at], block[at + 1]]));
            block[at..at + 2].copy_from_slice(&half_bits(f(scale)).to_le_bytes());
        }
    }

    /// All scales of a weight, block by block as they are stored, in another order: `from(row, block, rows,
    /// blocks)` says whose.
    pub fn rearranged(
        self,
        w: &Weight,
        from: impl Fn(usize, usize, usize, usize) -> usize,
    ) -> Option<Vec<f32>> {
        let &[rows, width] = w.shape else { return None };
        let count = width / self.len;
        w.decoded(|bytes| {
            let scales: Vec<Vec<u8>> = bytes
                .chunks_exact(self.bytes)
                .map(|block| self.scales.iter().flat_map(|&at| [block[at], block[at + 1]]).collect())
                .collect();
            for (i, block) in bytes.chunks_exact_mut(self.bytes).enumerate() {
                let Some(other) = scales.get(from(i / count.max(1), i % count.max(1), rows, count)) else {
                    continue;
                };
                for (part, &at) in self.scales.iter().enumerate() {
                    block[at..at + 2].copy_from_slice(&other[2 * part..2 * part + 2]);
                }
            }
        })
    }
}
