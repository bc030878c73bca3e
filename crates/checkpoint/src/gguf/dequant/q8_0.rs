//! Q8_0: a scale, then 32 signed bytes. `d · byte`.

use super::{blocks, half, part};

pub(super) fn dequantise(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in blocks::<34, 32>(bytes, out) {
        let d = half(block, 0);
        let quants: &[u8; 32] = part::<34, 2, 32>(block);
        for i in 0..32 {
            out[i] = d * f32::from(quants[i] as i8);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_signed() {
        let mut block = [0; 34];
        block[..2].copy_from_slice(&[0x00, 0x38]); // 0.5
        (block[2], block[33]) = (0x80, 0x7f);
        let mut out = [f32::NAN; 32];
        super::dequantise(&block, &mut out);
        let mut expected = [0.0; 32];
        (expected[0], expected[31]) = (-64.0, 63.5);
        assert_eq!(out, expected);
    }
}
