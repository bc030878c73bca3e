//! Q2_K: 16 groups of 16. Scales and minima of 4 bits, 64 bytes of 2-bit planes, a scale of scales and one
//! of minima. Each 32 bytes hold 128 elements: plane p of byte l is element 32·p + l.
//! `(d · scale) · quant − dmin · minimum`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<84, 256>(bytes, out) {
        let (d, dmin) = (half(block, 80), half(block, 82));
        let quants: &[u8; 64] = part::<84, 16, 64>(block);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(block[group] & 15);
            let minimum = dmin * f32::from(block[group] >> 4);
            let (at, plane) = (32 * (group / 8) + 16 * (group % 2), group % 8 / 2);
            let quants: &[u8; 16] = quants[at..].first_chunk().expect("at is at most 48");
            for i in 0..16 {
                out[i] = scale * f32::from(quants[i] >> (2 * plane) & 3) - minimum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn planes_halves_scales_and_minima_are_found_where_they_lie() {
        let mut block = [0; 84];
        block[80..].copy_from_slice(&[0x00, 0x38, 0x00, 0x3c]); // 0.5, 1
        block[3] = 0x24; // group 3 (elements 48..64): scale 4, minimum 2
        block[15] = 0x01; // group 15 (elements 240..256): scale 1
        block[16 + 17] = 0b1100; // half 0, byte 17, plane 1: element 49 is 3
        block[16 + 32 + 31] = 0b10_000000; // half 1, byte 31, plane 3: element 255 is 2
        let mut out = [f32::NAN; 256];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 256];
        expected[48..64].fill(-2.0);
        expected[49] = 4.0;
        expected[255] = 1.0;
        assert_eq!(out, expected);
    }
}
