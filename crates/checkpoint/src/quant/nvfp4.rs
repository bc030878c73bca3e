//! NVFP4: two elements of E2M1 a byte, the lower nibble first; for 16 of a row a scale in E4M3, and a factor for the
//! whole matrix. `value · (scale · factor)`, in binary32 in this order, or `value · (scale / factor)`: see
//! [`super::Global`].

use super::small::scaled_pairs;

/// One row. `line` holds its scales, the factor included.
pub(super) fn dequantise(packed: &[u8], line: &[f32], out: &mut [f32]) {
    scaled_pairs::<8, 16>(packed, line, out);
}

#[cfg(test)]
mod tests {
    #[test]
    fn sixteen_elements_share_a_scale() {
        let mut packed = [0; 16];
        (packed[7], packed[8]) = (0x70, 0xf1);
        let mut out = [f32::NAN; 32];
        super::dequantise(&packed, &[0.5, 2.0], &mut out);
        assert_eq!((out[14], out[15], out[16], out[17]), (0.0, 3.0, 1.0, -12.0));
    }
}
