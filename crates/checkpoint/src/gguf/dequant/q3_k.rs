//! Q3_K: 16 groups of 16. A third bit per element, 64 bytes of 2-bit planes as in Q2_K, 6-bit scales less 32
//! packed in 12 bytes, a scale of scales. A third bit of **0** subtracts 4.
//! `(d · scale) · (quant − 4 · !third)`.

use super::{blocks, half, part};

fn scale(packed: &[u8; 12], group: usize) -> i8 {
    let low = packed[group % 8] >> (4 * (group / 8)) & 15;
    let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
    (low | high << 4) as i8 - 32
}

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<110, 256>(bytes, out) {
        let third: &[u8; 32] = part::<110, 0, 32>(block);
        let quants: &[u8; 64] = part::<110, 32, 64>(block);
        let scales: &[u8; 12] = part::<110, 96, 12>(block);
        let d = half(block, 108);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(scale(scales, group));
            let (side, half, plane) = (16 * (group % 2), group / 8, group % 8 / 2);
            let third: &[u8; 16] = third[side..].first_chunk().expect("side is 0 or 16");
            let quants: &[u8; 16] = quants[32 * half + side..].first_chunk().expect("at most 48");
            for i in 0..16 {
                let low = (quants[i] >> (2 * plane) & 3) as i8;
                let high = (third[i] >> (4 * half + plane) & 1) as i8;
                out[i] = scale * f32::from(low + 4 * high - 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_offset_is_zero_where_the_third_bit_is_set() {
        let mut block = [0; 110];
        block[108..].copy_from_slice(&[0x00, 0x38]); // 0.5
        block[96 + 7] = 0x30; // group 15: low bits 3
        block[96 + 11] = 0b11_000000; // group 15: high bits 3, so the scale is 51 - 32
        block[32 + 32 + 31] = 0b10_000000; // element 255: 2
        block[31] = 0x80; // element 255: third bit
        let mut out = [f32::NAN; 256];
        super::dequantise(&block, &mut out);
        let mut expected = [0.5 * -32.0 * -4.0; 256];
        expected[240..].fill(0.5 * 19.0 * -4.0);
        expected[255] = 0.5 * 19.0 * 2.0;
        assert_eq!(out, expected);
    }
}
