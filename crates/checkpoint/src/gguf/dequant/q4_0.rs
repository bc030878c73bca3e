//! Q4_0: a scale, then 32 nibbles; the low nibbles are the first half. `d · (nibble − 8)`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<18, 32>(bytes, out) {
        let d = half(block, 0);
        let quants: &[u8; 16] = part::<18, 2, 16>(block);
        for i in 0..16 {
            out[i] = d * f32::from((quants[i] & 15) as i8 - 8);
            out[i + 16] = d * f32::from((quants[i] >> 4) as i8 - 8);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn low_nibbles_come_first_and_eight_is_zero() {
        let mut block = [0x88; 18];
        block[..2].copy_from_slice(&[0x00, 0x38]); // 0.5
        block[2] = 0xf0;
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 32];
        (expected[0], expected[16]) = (-4.0, 3.5);
        assert_eq!(out, expected);
    }
}
