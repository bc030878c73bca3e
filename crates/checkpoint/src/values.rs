//! From stored bytes to binary32 values.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Storage;
use crate::gguf::dequant;
use crate::quant::small;

/// The largest block of any format, in elements.
const MAX_BLOCK: usize = 256;

/// Writes the elements `range` of a tensor stored as `bytes` to `out`. None when the range lies outside the
/// bytes or `out` has another length.
///
/// Binary64 values and wide integers are rounded to binary32.
pub(crate) fn read(storage: Storage, bytes: &[u8], range: Range<usize>, out: &mut [f32]) -> Option<()> {
    if out.len() != range.len() {
        return None;
    }
    let Some(dequantise) = dequant::for_storage(storage) else {
        let size = storage.block_bytes();
        let bytes = bytes.get(range.start.checked_mul(size)?..range.end.checked_mul(size)?)?;
        read_plain(storage, bytes, out);
        return Some(());
    };
    let (len, size) = (storage.block_len(), storage.block_bytes());
    let block = |at: usize| bytes.get(at.checked_mul(size)?..(at + 1).checked_mul(size)?);

    // Whole blocks go straight to the output; the ends of a range may cut one.
    let (mut at, mut out) = (range.start, out);
    while !out.is_empty() {
        let within = at % len;
        let taken = if within == 0 && out.len() >= len {
            let whole = out.len() / len * len;
            let first = at / len;
            let blocks = bytes.get(first.checked_mul(size)?..(first + whole / len).checked_mul(size)?)?;
            dequantise(blocks, &mut out[..whole]);
            whole
        } else {
            let mut buffer = [0.0; MAX_BLOCK];
            dequantise(block(at / len)?, &mut buffer[..len]);
            let taken = (len - within).min(out.len());
            out[..taken].copy_from_slice(&buffer[within..within + taken]);
            taken
        };
        at += taken;
        out = &mut out[taken..];
    }
    Some(())
}

fn read_plain(storage: Storage, bytes: &[u8], out: &mut [f32]) {
    match storage {
        Storage::F64 => each::<8>(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Storage::F32 => each::<4>(bytes, out, f32::from_le_bytes),
        Storage::F16 => read_f16(bytes, out),
        Storage::BF16 => each::<2>(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Storage::I64 => each::<8>(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Storage::I32 => each::<4>(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Storage::I16 => each::<2>(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Storage::I8 => each::<1>(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        Storage::U64 => each::<8>(bytes, out, |b| u64::from_le_bytes(b) as f32),
        Storage::U32 => each::<4>(bytes, out, |b| u32::from_le_bytes(b) as f32),
        Storage::U16 => each::<2>(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        Storage::F8E4M3 => each::<1>(bytes, out, |[b]| small::e4m3(b)),
        Storage::F8E5M2 => each::<1>(bytes, out, |[b]| small::e5m2(b)),
        Storage::F8E8M0 => each::<1>(bytes, out, |[b]| small::e8m0(b)),
        _ => each::<1>(bytes, out, |[b]| f32::from(b)),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (bytes, out) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *out = value(*bytes);
    }
}

/// In runs, because the processor's conversion instructions are chosen once per run.
fn read_f16(bytes: &[u8], out: &mut [f32]) {
    const RUN: usize = 256;
    let mut halves = [f16::ZERO; RUN];
    for (bytes, out) in bytes.chunks(2 * RUN).zip(out.chunks_mut(RUN)) {
        for (bytes, half) in bytes.as_chunks::<2>().0.iter().zip(&mut halves) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves[..out.len()].convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_types_read_to_their_values() {
        let cases: &[(Storage, &[u8], f32)] = &[
            (Storage::F64, &(-2.5f64).to_le_bytes(), -2.5),
            (Storage::F32, &1.25f32.to_le_bytes(), 1.25),
            (Storage::F16, &[0x00, 0xbc], -1.0),
            (Storage::BF16, &[0x80, 0x3f], 1.0),
            (Storage::I64, &(-7i64).to_le_bytes(), -7.0),
            (Storage::I32, &(-7i32).to_le_bytes(), -7.0),
            (Storage::I16, &(-7i16).to_le_bytes(), -7.0),
            (Storage::I8, &[0xff], -1.0),
            (Storage::U64, &7u64.to_le_bytes(), 7.0),
            (Storage::U32, &7u32.to_le_bytes(), 7.0),
            (Storage::U16, &[0xff, 0xff], 65535.0),
            (Storage::U8, &[0xff], 255.0),
            (Storage::Bool, &[1], 1.0),
            (Storage::F8E4M3, &[0xfe], -448.0),
            (Storage::F8E5M2, &[0x7b], 57344.0),
            (Storage::F8E8M0, &[0x80], 2.0),
        ];
        for &(storage, bytes, value) in cases {
            let twice = [[0; 8][..bytes.len()].to_vec(), bytes.to_vec()].concat();
            let mut out = [f32::NAN];
            assert_eq!(read(storage, &twice, 1..2, &mut out), Some(()));
            assert_eq!(out, [value], "{}", storage.name());
        }
    }

    #[test]
    fn long_runs_of_binary16_read_like_single_ones() {
        let bytes: Vec<u8> = (0..1000u16).flat_map(|n| (n * 61).to_le_bytes()).collect();
        let mut all = vec![0.0; 1000];
        read(Storage::F16, &bytes, 0..1000, &mut all).unwrap();
        for (at, value) in all.iter().enumerate() {
            let expected = f16::from_bits(at as u16 * 61).to_f32();
            assert_eq!(value.to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn a_range_that_cuts_blocks_reads_what_the_whole_tensor_has_there() {
        for storage in Storage::all().filter(|s| s.is_ggml_block()) {
            let bytes: Vec<u8> = (0..3 * storage.block_bytes()).map(|n| (n * 37 % 59) as u8).collect();
            let elements = 3 * storage.block_len();
            let mut all = vec![0.0; elements];
            read(storage, &bytes, 0..elements, &mut all).unwrap();
            for range in [0..1, 5..storage.block_len() + 3, 7..elements, elements - 1..elements, 4..4] {
                let mut some = vec![f32::NAN; range.len()];
                read(storage, &bytes, range.clone(), &mut some).unwrap();
                assert_eq!(some, all[range], "{}", storage.name());
            }
            assert_eq!(read(storage, &bytes, 1..elements + 1, &mut all), None);
        }
    }
}
