//! Q5_0: a scale, 32 fifth bits, then 32 nibbles; the low nibbles are the first half. `d · (quant − 16)`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<22, 32>(bytes, out) {
        let d = half(block, 0);
        let high = u32::from_le_bytes(*part::<22, 2, 4>(block));
        let quants: &[u8; 16] = part::<22, 6, 16>(block);
        for i in 0..16 {
            let low = i32::from(quants[i] & 15) + ((high >> i) & 1) as i32 * 16;
            let upper = i32::from(quants[i] >> 4) + ((high >> (i + 16)) & 1) as i32 * 16;
            out[i] = d * (low - 16) as f32;
            out[i + 16] = d * (upper - 16) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fifth_bit_of_element_i_is_bit_i() {
        let mut block = [0; 22];
        block[..2].copy_from_slice(&[0x00, 0x38]); // 0.5
        block[2..6].copy_from_slice(&(1u32 << 1 | 1 << 17).to_le_bytes());
        block[6] = 0xf1;
        block[7] = 0x32;
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [-8.0; 32];
        (expected[0], expected[16]) = (-7.5, -0.5);
        (expected[1], expected[17]) = (1.0, 1.5);
        assert_eq!(out, expected);
    }
}
