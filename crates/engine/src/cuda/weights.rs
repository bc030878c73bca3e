//! Weights on the GPU: in the format of the file, rows cut into segments that start at multiples of 16 bytes.

use std::collections::HashMap;

use firstdiff_checkpoint::{Checkpoint, Format, Storage, TensorInfo};
use half::bf16;

use crate::cuda::Error;
use crate::cuda::device::{Buffer, Gpu, arguments};
use crate::cuda::plan::Plan;

/// Formats the kernels read, in the order of `kernels/formats.cu`.
const FORMATS: [Storage; 10] = [
    Storage::BF16,
    Storage::F16,
    Storage::F32,
    Storage::Q4_0,
    Storage::Q4_1,
    Storage::Q5_0,
    Storage::Q8_0,
    Storage::Q4K,
    Storage::Q5K,
    Storage::Q6K,
];

/// A matrix as kernels take it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mat {
    pub at: u64,
    pub stride: u32,
    pub format: u32,
}

impl Mat {
    /// Whether the matrix is plain bf16, as tensor cores take it.
    pub fn is_bf16(&self) -> bool {
        self.format == 0
    }
}

/// A layer as kernels take it; 0 where there is no such vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layer {
    /// q, k, v, o, gate, up, down.
    pub mats: [Mat; 7],
    pub attn_norm: u64,
    pub mlp_norm: u64,
    pub q_norm: u64,
    pub k_norm: u64,
    /// As `mats`.
    pub biases: [u64; 7],
    /// Keys that a row sees; 0: all.
    pub window: i64,
}

/// How matrices are stored: what kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storing {
    /// Bit n: some matrix has format n.
    pub formats: u32,
    /// Elements of a segment.
    pub segment: usize,
}

/// Everything the kernels read and never write.
#[derive(Debug)]
pub(super) struct Weights {
    pub layers: Vec<Layer>,
    pub embed: Mat,
    pub head: Mat,
    pub final_norm: u64,
    /// Every matrix by name.
    pub by_name: HashMap<String, Mat>,
    _buffers: Vec<Buffer>,
}

/// The format in which a matrix is kept: bf16 for folders, the file's own for GGUF.
fn kept(checkpoint: &Checkpoint, t: &TensorInfo) -> Result<(usize, Storage), Error> {
    let storage = match checkpoint.format() {
        Format::SafeTensors if t.storage.is_float() => Storage::BF16,
        _ => t.storage,
    };
    let known = FORMATS.iter().position(|f| *f == storage);
    let format = known.ok_or_else(|| {
        let names: Vec<&str> = FORMATS.iter().map(|f| f.name()).collect();
        let what =
            format!("'{}' is stored as {}; supported are {}", t.name, t.storage.name(), names.join(", "));
        Error::Unsupported { what }
    })?;
    Ok((format, storage))
}

fn tensor<'c>(checkpoint: &'c Checkpoint, name: &str) -> Result<&'c TensorInfo, Error> {
    checkpoint.tensor(name).ok_or_else(|| Error::Unsupported { what: format!("it has no '{name}'") })
}

/// Bytes of a block as it is kept: a multiple of four, so that quants are read a word at a time.
fn block_bytes(storage: Storage) -> usize {
    let bytes = storage.block_bytes();
    match storage {
        Storage::Q4K | Storage::Q5K => bytes + 4,
        _ if storage.block_len() > 1 => bytes.next_multiple_of(4),
        _ => bytes,
    }
}

/// Copies a block to where the kernels read it: of a legacy format with two more bytes behind the scale, of a K-quant in
/// another order.
fn copy_block(storage: Storage, from: &[u8], to: &mut [u8]) {
    match storage {
        Storage::Q4K => {
            copy_scales(from, to);
            copy_nibbles(&from[16..], &mut to[20..]);
        }
        Storage::Q5K => {
            copy_scales(from, to);
            to[20..52].copy_from_slice(&from[16..48]);
            copy_nibbles(&from[48..], &mut to[52..]);
        }
        Storage::Q6K => {
            copy_sixes(&from[..128], &from[128..192], to);
            to[192..210].copy_from_slice(&from[192..]);
        }
        _ => {
            let longer = to.len() - from.len();
            to[..2].copy_from_slice(&from[..2]);
            to[2 + longer..].copy_from_slice(&from[2..]);
        }
    }
}

/// Of Q4_K and Q5_K the scales and minima of the eight groups, six bits each, get a byte each, in turn.
fn copy_scales(from: &[u8], to: &mut [u8]) {
    to[..4].copy_from_slice(&from[..4]);
    let packed = &from[4..16];
    for g in 0..4 {
        let (a, b, c) = (packed[g], packed[g + 4], packed[g + 8]);
        let (low, high) = (2 * g + 4, 2 * g + 12);
        to[low..low + 2].copy_from_slice(&[a & 63, b & 63]);
        to[high..high + 2].copy_from_slice(&[c & 15 | a >> 6 << 4, c >> 4 | b >> 6 << 4]);
    }
}

/// Of Q4_K and Q5_K the nibbles: those of two groups share 32 bytes in the file; here a group has 16 of its own, element i with
/// element i + 16, as in Q4_0.
fn copy_nibbles(from: &[u8], to: &mut [u8]) {
    for (g, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (pair, shift) = (&from[g / 2 * 32..][..32], g % 2 * 4);
        for (i, to) in to.iter_mut().enumerate() {
            *to = pair[i] >> shift & 15 | (pair[i + 16] >> shift & 15) << 4;
        }
    }
}

/// Of Q6_K the quants, six bits each: a lane's eight are a word and two bytes. A half of the word has elements i and i + 1 of
/// a group, for an even i below 16, in its lower twelve bits, a byte element i + 16 in its lower six; element i + 17 is what is
/// left, its lower four bits in the half of the word, the upper two in the byte.
fn copy_sixes(low: &[u8], high: &[u8], to: &mut [u8]) {
    let quant = |e: usize| {
        let (half, plane, r) = (e / 128, e % 128 / 32, e % 32);
        let low = low[half * 64 + plane % 2 * 32 + r] >> (plane / 2 * 4) & 15;
        u16::from(low | (high[half * 32 + r] >> (2 * plane) & 3) << 4)
    };
    for half in 0..64 {
        let e = half / 8 * 32 + half % 8 * 2;
        let [a, b, c, d] = [quant(e), quant(e + 1), quant(e + 16), quant(e + 17)];
        to[2 * half..2 * half + 2].copy_from_slice(&(a | b << 6 | (d & 15) << 12).to_le_bytes());
        to[128 + half] = (c | d >> 4 << 6) as u8;
    }
}

/// Bytes of one row, padding included.
fn stride(storage: Storage, width: usize, segment: usize) -> usize {
    let bytes = |n: usize| (n / storage.block_len() * block_bytes(storage)).next_multiple_of(16);
    width / segment * bytes(segment) + bytes(width % segment)
}

impl Storing {
    /// Bytes of a whole segment in the longest of the formats.
    pub fn segment_bytes(&self) -> usize {
        let used = FORMATS.iter().enumerate().filter(|(n, _)| self.formats & 1 << n != 0);
        used.map(|(_, f)| stride(*f, self.segment, self.segment)).max().unwrap_or(0)
    }

    /// How the matrices of `plan` will be stored, and the bytes they take.
    pub fn of(checkpoint: &Checkpoint, plan: &Plan) -> Result<(Storing, usize), Error> {
        let mut names: Vec<&str> = vec![&plan.embed, &plan.head];
        names.extend(plan.layers.iter().flat_map(|l| l.linear.iter().map(|l| l.weight.as_str())));
        names.sort_unstable();
        names.dedup();
        let mut storing = Storing { formats: 0, segment: 1024 };
        let mut sizes = vec![];
        for name in names {
            let t = tensor(checkpoint, name)?;
            let (format, storage) = kept(checkpoint, t)?;
            if t.row_len() % storage.block_len() != 0 {
                return Err(Error::Unsupported { what: format!("rows of '{name}' are no whole blocks") });
            }
            storing.formats |= 1 << format;
            sizes.push((storage, t.rows(), t.row_len()));
        }
        // With half as many elements, a segment of f32 is no longer than one of bf16: slots hold rows of any format.
        if storing.formats & 1 << 2 != 0 {
            storing.segment = 512;
        }
        let bytes = sizes.iter().map(|(s, rows, width)| rows * stride(*s, *width, storing.segment)).sum();
        Ok((storing, bytes))
    }
}

/// Uploads weights, each once.
struct Uploader<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    storing: Storing,
    done: HashMap<String, Mat>,
    buffers: Vec<Buffer>,
}

impl Uploader<'_> {
    fn matrix(&mut self, name: &str) -> Result<Mat, Error> {
        if let Some(mat) = self.done.get(name) {
            return Ok(*mat);
        }
        let t = tensor(self.checkpoint, name)?;
        let (format, storage) = kept(self.checkpoint, t)?;
        let (rows, width, segment) = (t.rows(), t.row_len(), self.storing.segment);
        let stride = stride(storage, width, segment);
        let mut packed = vec![0u8; rows * stride];
        let mut values = vec![0.0; width];
        for (row, out) in packed.chunks_exact_mut(stride.max(1)).enumerate() {
            if storage == t.storage {
                let bytes = self.checkpoint.row_bytes(t, row).unwrap_or_default();
                let blocks = segment / storage.block_len();
                let (stored, kept) = (storage.block_bytes(), block_bytes(storage));
                let segments = out.chunks_mut((blocks * kept).next_multiple_of(16));
                for (from, to) in bytes.chunks(blocks * stored).zip(segments) {
                    if stored == kept {
                        to[..from.len()].copy_from_slice(from);
                        continue;
                    }
                    for (from, to) in from.chunks_exact(stored).zip(to.chunks_exact_mut(kept)) {
                        copy_block(storage, from, to);
                    }
                }
            } else {
                self.checkpoint.read_rows(t, row..row + 1, &mut values)?;
                for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(&values) {
                    *out = bf16::from_f32(*x).to_le_bytes();
                }
            }
        }
        let buffer = self.gpu.upload(&packed)?;
        let mat = Mat { at: buffer.at, stride: stride as u32, format: format as u32 };
        self.buffers.push(buffer);
        self.done.insert(name.to_string(), mat);
        Ok(mat)
    }

    /// A vector in f32; in values of bf16 where the model's weights are brought to that.
    fn vector(&mut self, name: &str) -> Result<u64, Error> {
        let t = tensor(self.checkpoint, name)?;
        let mut values = self.checkpoint.read(t)?;
        if self.checkpoint.format() == Format::SafeTensors {
            values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        let buffer = self.gpu.upload(&values)?;
        let at = buffer.at;
        self.buffers.push(buffer);
        Ok(at)
    }

    fn optional(&mut self, name: Option<&String>) -> Result<u64, Error> {
        name.map_or(Ok(0), |name| self.vector(name))
    }
}

impl Weights {
    pub fn load(gpu: &Gpu, checkpoint: &Checkpoint, plan: &Plan, storing: Storing) -> Result<Weights, Error> {
        let mut up = Uploader { gpu, checkpoint, storing, done: HashMap::new(), buffers: vec![] };
        let mut layers = Vec::with_capacity(plan.layers.len());
        for l in &plan.layers {
            let mut layer = Layer {
                attn_norm: up.vector(&l.attn_norm)?,
                mlp_norm: up.vector(&l.mlp_norm)?,
                q_norm: up.optional(l.q_norm.as_ref())?,
                k_norm: up.optional(l.k_norm.as_ref())?,
                window: l.window.map_or(0, |w| w as i64),
                ..Layer::default()
            };
            for (n, linear) in l.linear.iter().enumerate() {
                layer.mats[n] = up.matrix(&linear.weight)?;
                layer.biases[n] = up.optional(linear.bias.as_ref())?;
            }
            layers.push(layer);
        }
        let (embed, head) = (up.matrix(&plan.embed)?, up.matrix(&plan.head)?);
        let final_norm = up.vector(&plan.final_norm)?;
        gpu.wait()?;
        Ok(Weights { layers, embed, head, final_norm, by_name: up.done, _buffers: up.buffers })
    }
}

arguments!(Mat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q4_k_has_scales_in_bytes_and_groups_apart() {
        // Group g has scale g + 1 and minimum 63 - g: their upper two bits lie with those of the first four groups.
        let mut packed = [0u8; 12];
        for g in 0..8u8 {
            let (scale, minimum, at) = (g + 1, 63 - g, usize::from(g % 4));
            if g < 4 {
                packed[at] |= scale;
                packed[at + 4] |= minimum;
            } else {
                packed[at + 8] = scale & 15 | (minimum & 15) << 4;
                packed[at] |= scale >> 4 << 6;
                packed[at + 4] |= minimum >> 4 << 6;
            }
        }
        // Element i of group g is (g + i) % 16.
        let nibble = |g: usize, i: usize| ((g + i) % 16) as u8;
        let stored: Vec<u8> =
            (0..128).map(|b| nibble(b / 32 * 2, b % 32) | nibble(b / 32 * 2 + 1, b % 32) << 4).collect();
        let from: Vec<u8> = [&[1, 2, 3, 4][..], &packed, &stored].concat();
        let mut to = [0u8; 148];
        copy_block(Storage::Q4K, &from, &mut to);
        let expected: Vec<u8> = (0..8).flat_map(|g| [g + 1, 63 - g]).collect();
        assert_eq!(to[..4], [1, 2, 3, 4]);
        assert_eq!(to[4..20], expected);
        let kept: Vec<u8> =
            (0..128).map(|b| nibble(b / 16, b % 16) | nibble(b / 16, b % 16 + 16) << 4).collect();
        assert_eq!(to[20..], kept);
    }

    #[test]
    fn q5_k_keeps_its_fifth_bits_before_nibbles_group_by_group() {
        let fifth: Vec<u8> = (100..132).collect();
        let from: Vec<u8> =
            [&[0; 16][..], &fifth, &[0x21; 32], &[0x43; 32], &[0x65; 32], &[0x87; 32]].concat();
        let mut to = [0u8; 180];
        copy_block(Storage::Q5K, &from, &mut to);
        assert_eq!(to[20..52], fifth);
        let kept: Vec<u8> = (1..=8).flat_map(|group| [group * 0x11; 16]).collect();
        assert_eq!(to[52..], kept);
    }

    #[test]
    fn quants_of_six_bits_lie_with_their_lane() {
        let quant = |e: usize| (e * 37 % 64) as u8;
        let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
        for e in 0..256 {
            let (half, within) = (e / 128, e % 128);
            let q = quant(e);
            low[half * 64 + within % 64] |= (q & 15) << (within / 64 * 4);
            high[half * 32 + within % 32] |= q >> 4 << (within / 32 * 2);
        }
        let mut to = [0u8; 192];
        copy_sixes(&low, &high, &mut to);
        for (g, i) in (0..8).flat_map(|g| (0..16).step_by(2).map(move |i| (g, i))) {
            let (at, e) = (g * 16 + i, g * 32 + i);
            let half = u16::from_le_bytes([to[at], to[at + 1]]);
            let byte = u16::from(to[128 + at / 2]);
            let found = [half & 63, half >> 6 & 63, byte & 63, half >> 12 | byte >> 6 << 4];
            assert_eq!(found, [e, e + 1, e + 16, e + 17].map(|e| u16::from(quant(e))));
        }
    }
}
