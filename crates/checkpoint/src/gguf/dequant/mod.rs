//! Block formats: from stored blocks to numbers.
//!
//! One file per format. Each follows the arithmetic of the `gguf` Python package in binary32, operation by
//! operation, so that results are equal bit for bit: scales multiply first, then the quant, then the minimum
//! is subtracted.
//!
//! The functions take whole blocks and as many outputs as these hold; a rest on either side is left alone.

mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nvfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use half::f16;

use crate::Storage;

/// Writes the values of whole blocks.
pub type Dequantise = fn(blocks: &[u8], out: &mut [f32]);

/// Every block format and its function.
pub const FORMATS: &[(Storage, Dequantise)] = &[
    (Storage::Q4_0, q4_0::dequantise),
    (Storage::Q4_1, q4_1::dequantise),
    (Storage::Q5_0, q5_0::dequantise),
    (Storage::Q5_1, q5_1::dequantise),
    (Storage::Q8_0, q8_0::dequantise),
    (Storage::Q2K, q2_k::dequantise),
    (Storage::Q3K, q3_k::dequantise),
    (Storage::Q4K, q4_k::dequantise),
    (Storage::Q5K, q5_k::dequantise),
    (Storage::Q6K, q6_k::dequantise),
    (Storage::Iq4Nl, iq4_nl::dequantise),
    (Storage::Iq4Xs, iq4_xs::dequantise),
    (Storage::Mxfp4, mxfp4::dequantise),
    (Storage::Nvfp4, nvfp4::dequantise),
];

/// The function of a block format; none for plain types.
pub fn for_storage(storage: Storage) -> Option<Dequantise> {
    FORMATS.iter().find(|row| row.0 == storage).map(|row| row.1)
}

/// Blocks of `BYTES` bytes beside their `LEN` outputs.
fn blocks<'a, const BYTES: usize, const LEN: usize>(
    bytes: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0)
}

/// The binary16 at `at`.
fn half<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The part of a block that begins at `AT`.
fn part<const BYTES: usize, const AT: usize, const LEN: usize>(block: &[u8; BYTES]) -> &[u8; LEN] {
    const { assert!(AT + LEN <= BYTES, "the part must lie in the block") };
    block[AT..].first_chunk().expect("checked when compiled")
}

/// The 6-bit scales and minima of the 8 groups of a Q4_K or Q5_K block.
fn scales_and_minima(packed: &[u8; 12]) -> [(u8, u8); 8] {
    std::array::from_fn(|group| match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    })
}

/// The 16 values that 4-bit codes of IQ4_NL and IQ4_XS stand for.
const IQ4_VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Twice the 16 values of E2M1, as ggml has them: there is no negative zero.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_format_has_a_function() {
        for storage in Storage::all() {
            assert_eq!(for_storage(storage).is_some(), storage.is_ggml_block(), "{}", storage.name());
        }
    }

    #[test]
    fn every_function_takes_blocks_of_the_size_that_its_format_has() {
        for &(storage, dequantise) in FORMATS {
            let two = vec![0x3c; 2 * storage.block_bytes()];
            let mut out = vec![f32::NAN; 2 * storage.block_len()];
            dequantise(&two, &mut out);
            assert!(out.iter().all(|x| x.is_finite()), "{} leaves outputs unwritten", storage.name());
            let (first, second) = out.split_at(storage.block_len());
            assert_eq!(first, second, "{} reads equal blocks differently", storage.name());
        }
    }

    #[test]
    fn scales_of_the_last_four_groups_take_their_high_bits_from_the_first_eight_bytes() {
        let mut packed = [0; 12];
        packed[0] = 0b11_000101; // group 0: scale 5; group 4: scale's high bits 3
        packed[4] = 0b10_000111; // group 0: minimum 7; group 4: minimum's high bits 2
        packed[8] = 0x94; // group 4: scale's low bits 4, minimum's low bits 9
        let groups = scales_and_minima(&packed);
        assert_eq!(groups[0], (5, 7));
        assert_eq!(groups[4], (3 << 4 | 4, 2 << 4 | 9));
        assert!([1, 2, 3, 5, 6, 7].iter().all(|&g: &usize| groups[g] == (0, 0)));
    }
}
