//! Q4_1: a scale, a minimum, then 32 nibbles; the low nibbles are the first half. `d · nibble + m`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<20, 32>(bytes, out) {
        let (d, m) = (half(block, 0), half(block, 2));
        let quants: &[u8; 16] = part::<20, 4, 16>(block);
        for i in 0..16 {
            out[i] = d * f32::from(quants[i] & 15) + m;
            out[i + 16] = d * f32::from(quants[i] >> 4) + m;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn low_nibbles_come_first_and_the_minimum_is_added() {
        let mut block = [0; 20];
        block[..4].copy_from_slice(&[0x00, 0x38, 0x00, 0xbc]); // 0.5, -1
        block[4] = 0xf2;
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [-1.0; 32];
        (expected[0], expected[16]) = (0.0, 6.5);
        assert_eq!(out, expected);
    }
}
