//! IQ4_XS: 8 groups of 32. A scale of scales, the scales' 2 high bits in 16 bits and their 4 low bits in 4
//! bytes (less 32), then per group 16 bytes of nibbles into the table of IQ4_NL, low nibbles first.
//! `(d · scale) · table[nibble]`.

use super::{IQ4_VALUES, blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<136, 256>(bytes, out) {
        let d = half(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        let low: &[u8; 4] = part::<136, 4, 4>(block);
        let quants: &[u8; 128] = part::<136, 8, 128>(block);
        let groups = quants.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0);
        for (group, (quants, out)) in groups.enumerate() {
            let bits = low[group / 2] >> (4 * (group % 2)) & 15 | ((high >> (2 * group) & 3) as u8) << 4;
            let scale = d * f32::from(bits as i8 - 32);
            for i in 0..16 {
                out[i] = scale * IQ4_VALUES[usize::from(quants[i] & 15)];
                out[i + 16] = scale * IQ4_VALUES[usize::from(quants[i] >> 4)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_scale_is_put_together_from_both_fields() {
        let mut block = [0x88; 136];
        block[..2].copy_from_slice(&[0x00, 0x40]); // 2
        block[2..4].copy_from_slice(&(0b10u16 << 14 | 0x2aaa).to_le_bytes());
        block[4..8].copy_from_slice(&[0, 0, 0, 0x50]);
        block[8 + 112] = 0xf0; // group 7, byte 0
        let mut out = [f32::NAN; 256];
        super::dequantise(&block, &mut out);
        // Groups 0..7 have high bits 2 and low bits 0: a scale of 0. Group 7 has 2 and 5: a scale of 5.
        let mut expected = [0.0; 256];
        expected[224..].fill(10.0);
        (expected[224], expected[240]) = (-1270.0, 1130.0);
        assert_eq!(out, expected);
    }
}
