//! Q5_K: as Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte l belongs to element l of
//! group g. `(d · scale) · quant − dmin · minimum`.

use super::{blocks, half, part, scales_and_minima};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<176, 256>(bytes, out) {
        let (d, dmin) = (half(block, 0), half(block, 2));
        let groups = scales_and_minima(part::<176, 4, 12>(block));
        let fifth: &[u8; 32] = part::<176, 16, 32>(block);
        let quants: &[u8; 128] = part::<176, 48, 128>(block);
        let pairs = quants.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<64>().0);
        for (at, ((quants, out), pair)) in pairs.zip(groups.as_chunks::<2>().0).enumerate() {
            let [(low_scale, low_min), (high_scale, high_min)] =
                pair.map(|(scale, minimum)| (d * f32::from(scale), dmin * f32::from(minimum)));
            for i in 0..32 {
                let bits = fifth[i] >> (2 * at);
                out[i] = low_scale * f32::from(quants[i] & 15 | (bits & 1) << 4) - low_min;
                out[i + 32] = high_scale * f32::from(quants[i] >> 4 | (bits >> 1 & 1) << 4) - high_min;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bit_g_of_a_byte_is_the_fifth_bit_of_group_g() {
        let mut block = [0; 176];
        block[..4].copy_from_slice(&[0x00, 0x38, 0x00, 0x3c]); // 0.5, 1
        (block[4 + 2], block[4 + 3]) = (2, 4); // scales of groups 2 and 3
        block[4 + 4 + 3] = 3; // minimum of group 3
        block[16 + 1] = 0b1000; // fifth bit of element 1 of group 3
        block[48 + 32 + 1] = 0xf6;
        let mut out = [f32::NAN; 256];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 256];
        expected[65] = 6.0;
        expected[96..128].fill(-3.0);
        expected[97] = 59.0;
        assert_eq!(out, expected);
    }
}
