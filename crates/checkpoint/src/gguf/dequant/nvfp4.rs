//! NVFP4: 4 scales in E4M3 without sign, then 8 bytes of E2M1 for each group of 16; a group's low nibbles are its first
//! half. `(scale / 2) · (2 · value)`.
//!
//! A factor for the whole tensor is no part of the block: where a file has one, it is a tensor of its own.

use super::{E2M1_DOUBLED, blocks, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<36, 64>(bytes, out) {
        let scales: &[u8; 4] = part::<36, 0, 4>(block);
        let groups = part::<36, 4, 32>(block).as_chunks::<8>().0;
        for ((quants, &scale), out) in groups.iter().zip(scales).zip(out.as_chunks_mut::<16>().0) {
            let half = 0.5 * scale_of(scale);
            for i in 0..8 {
                out[i] = half * E2M1_DOUBLED[usize::from(quants[i] & 15)];
                out[i + 8] = half * E2M1_DOUBLED[usize::from(quants[i] >> 4)];
            }
        }
    }
}

/// The scale that a byte stands for. What would be NaN is zero, and the top bit is not looked at.
fn scale_of(byte: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(byte >> 3 & 15), u32::from(byte & 7));
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_group_has_its_scale_and_its_halves() {
        let mut block = [0; 36];
        block[3] = 0x40; // the last group's scale: 2
        block[4 + 24] = 0xf1;
        let mut out = [f32::NAN; 64];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 64];
        (expected[48], expected[56]) = (1.0, -12.0);
        assert_eq!(out, expected);
    }

    #[test]
    fn scales_grow_with_their_bits_until_the_one_that_stands_for_zero() {
        assert!((0..0x7e).all(|b| super::scale_of(b) < super::scale_of(b + 1)));
        assert_eq!((super::scale_of(0x7e), super::scale_of(0x7f)), (448.0, 0.0));
    }
}
