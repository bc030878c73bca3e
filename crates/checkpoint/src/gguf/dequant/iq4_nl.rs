//! IQ4_NL: a scale, then 32 nibbles into a table of 16 values; the low nibbles are the first half.
//! `d · table[nibble]`.

use super::{IQ4_VALUES, blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<18, 32>(bytes, out) {
        let d = half(block, 0);
        let quants: &[u8; 16] = part::<18, 2, 16>(block);
        for i in 0..16 {
            out[i] = d * IQ4_VALUES[usize::from(quants[i] & 15)];
            out[i + 16] = d * IQ4_VALUES[usize::from(quants[i] >> 4)];
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn low_nibbles_come_first_and_index_the_table() {
        let mut block = [0x88; 18];
        block[..2].copy_from_slice(&[0x00, 0x40]); // 2
        block[2] = 0xf0;
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [2.0; 32];
        (expected[0], expected[16]) = (-254.0, 226.0);
        assert_eq!(out, expected);
    }
}
