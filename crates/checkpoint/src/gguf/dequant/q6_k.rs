//! Q6_K: 16 groups of 16. 128 bytes of low nibbles, 64 bytes of 2-bit planes, signed byte scales, a scale of
//! scales. Each half (128 elements) has 64 bytes of nibbles: low nibbles are its elements 0..64, high ones
//! 64..128; plane p of byte l is element 32·p + l. `(d · scale) · (quant − 32)`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<210, 256>(bytes, out) {
        let d = half(block, 208);
        let scales: &[u8; 16] = part::<210, 192, 16>(block);
        let low = part::<210, 0, 128>(block).as_chunks::<64>().0;
        let high = part::<210, 128, 64>(block).as_chunks::<32>().0;
        for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let scale = d * f32::from(scales[8 * half + group] as i8);
                let (plane, side) = (group / 2, 16 * (group % 2));
                let low: &[u8; 16] = low[half][32 * (plane % 2) + side..].first_chunk().expect("at most 48");
                let high: &[u8; 16] = high[half][side..].first_chunk().expect("0 or 16");
                for i in 0..16 {
                    let quant = low[i] >> (4 * (plane / 2)) & 15 | (high[i] >> (2 * plane) & 3) << 4;
                    out[i] = scale * f32::from(quant as i8 - 32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nibbles_and_planes_meet_at_their_element() {
        let mut block = [0; 210];
        block[208..].copy_from_slice(&[0x00, 0x38]); // 0.5
        block[192 + 15] = 0xfe; // the last group's scale: -2
        block[127] = 0x50; // half 1, plane 3, byte 31: low bits 5
        block[128 + 63] = 0b11_000000; // the same element: high bits 3
        let mut out = [f32::NAN; 256];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 256];
        expected[240..].fill(32.0);
        expected[255] = -21.0;
        assert_eq!(out, expected);
    }
}
