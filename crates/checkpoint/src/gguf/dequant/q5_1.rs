//! Q5_1: a scale, a minimum, 32 fifth bits, then 32 nibbles; the low nibbles are the first half.
//! `d · quant + m`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<24, 32>(bytes, out) {
        let (d, m) = (half(block, 0), half(block, 2));
        let high = u32::from_le_bytes(*part::<24, 4, 4>(block));
        let quants: &[u8; 16] = part::<24, 8, 16>(block);
        for i in 0..16 {
            let low = i32::from(quants[i] & 15) + ((high >> i) & 1) as i32 * 16;
            let upper = i32::from(quants[i] >> 4) + ((high >> (i + 16)) & 1) as i32 * 16;
            out[i] = d * low as f32 + m;
            out[i + 16] = d * upper as f32 + m;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fifth_bit_of_element_i_is_bit_i() {
        let mut block = [0; 24];
        block[..4].copy_from_slice(&[0x00, 0x38, 0x00, 0xbc]); // 0.5, -1
        block[4..8].copy_from_slice(&(1u32 << 1 | 1 << 17).to_le_bytes());
        block[8] = 0xf1;
        block[9] = 0x32;
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [-1.0; 32];
        (expected[0], expected[16]) = (-0.5, 6.5);
        (expected[1], expected[17]) = (8.0, 8.5);
        assert_eq!(out, expected);
    }
}
