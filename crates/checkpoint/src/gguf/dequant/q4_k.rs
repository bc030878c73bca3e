//! Q4_K: 8 groups of 32. A scale of scales, one of minima, both 6-bit packed in 12 bytes, then 128 bytes of
//! nibbles: each 32 bytes hold one group in their low nibbles and the next in their high ones.
//! `(d · scale) · nibble − dmin · minimum`.

use super::{blocks, half, part, scales_and_minima};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<144, 256>(bytes, out) {
        let (d, dmin) = (half(block, 0), half(block, 2));
        let groups = scales_and_minima(part::<144, 4, 12>(block));
        let quants: &[u8; 128] = part::<144, 16, 128>(block);
        let pairs = quants.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<64>().0);
        for ((quants, out), pair) in pairs.zip(groups.as_chunks::<2>().0) {
            let [(low_scale, low_min), (high_scale, high_min)] =
                pair.map(|(scale, minimum)| (d * f32::from(scale), dmin * f32::from(minimum)));
            for i in 0..32 {
                out[i] = low_scale * f32::from(quants[i] & 15) - low_min;
                out[i + 32] = high_scale * f32::from(quants[i] >> 4) - high_min;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn neighbouring_groups_share_bytes() {
        let mut block = [0; 144];
        block[..4].copy_from_slice(&[0x00, 0x38, 0x00, 0x3c]); // 0.5, 1
        (block[4], block[5]) = (2, 4); // scales of groups 0 and 1
        block[4 + 5] = 3; // minimum of group 1
        block[16 + 1] = 0xf6;
        let mut out = [f32::NAN; 256];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 256];
        expected[1] = 6.0;
        expected[32..64].fill(-3.0);
        expected[33] = 27.0;
        assert_eq!(out, expected);
    }
}
