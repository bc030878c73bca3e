//! MXFP4: two elements of E2M1 a byte, the lower nibble first, and a power of two for 32 of a row. `value · scale`.
//!
//! The bytes may lie in a container of signed ones: they are masked as what they are, so no sign is extended.

use super::small::scaled_pairs;

/// One row. `line` holds its scales.
pub(super) fn dequantise(packed: &[u8], line: &[f32], out: &mut [f32]) {
    scaled_pairs::<16, 32>(packed, line, out);
}

#[cfg(test)]
mod tests {
    #[test]
    fn neighbours_share_a_byte_and_the_lower_nibble_comes_first() {
        let mut packed = [0; 32];
        (packed[0], packed[16]) = (0xf1, 0x80);
        let mut out = [f32::NAN; 64];
        super::dequantise(&packed, &[2.0, 4.0], &mut out);
        assert_eq!((out[0], out[1], out[32]), (1.0, -12.0, 0.0));
        assert!(out[33] == 0.0 && out[33].is_sign_negative());
    }
}
