//! MXFP4: a power of two, then 32 nibbles of E2M1; the low nibbles are the first half. `(scale / 2) · (2 · value)`, with
//! which no scale overflows and nothing is NaN: byte 255 is 2^128.

use super::{E2M1_DOUBLED, blocks, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<17, 32>(bytes, out) {
        let half = half_of_scale(block[0]);
        let quants: &[u8; 16] = part::<17, 1, 16>(block);
        for i in 0..16 {
            out[i] = half * E2M1_DOUBLED[usize::from(quants[i] & 15)];
            out[i + 16] = half * E2M1_DOUBLED[usize::from(quants[i] >> 4)];
        }
    }
}

/// `2^(byte - 128)`: the first two are subnormal in binary32.
fn half_of_scale(byte: u8) -> f32 {
    match byte {
        0 | 1 => f32::from_bits(0x0020_0000 << byte),
        _ => f32::from_bits(u32::from(byte - 1) << 23),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn low_nibbles_are_the_first_half() {
        let mut block = [0; 17];
        block[0] = 128; // 2
        block[1] = 0xf1;
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 32];
        (expected[0], expected[16]) = (1.0, -12.0);
        assert_eq!(out, expected);
    }

    #[test]
    fn scales_are_powers_of_two_down_to_the_smallest() {
        for byte in 0..=255u8 {
            assert_eq!(f64::from(super::half_of_scale(byte)), 2f64.powi(i32::from(byte) - 128));
        }
    }
}
