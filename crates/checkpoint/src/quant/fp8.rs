//! FP8: one byte of E4M3 an element, one scale for a block of rows and columns. `value · scale`; what files call
//! `weight_scale_inv` is this factor, not its inverse.

use super::small::E4M3;

/// One row. `line` holds its scales, each for `columns` columns; the last block may be cut.
pub(super) fn dequantise(packed: &[u8], line: &[f32], columns: usize, out: &mut [f32]) {
    let blocks = packed.chunks(columns.max(1)).zip(out.chunks_mut(columns.max(1)));
    for ((packed, out), &scale) in blocks.zip(line) {
        for (out, &code) in out.iter_mut().zip(packed) {
            *out = E4M3[usize::from(code)] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_block_has_its_scale_and_the_last_may_be_cut() {
        let mut out = [f32::NAN; 5];
        super::dequantise(&[0x38, 0xb8, 0x40, 0x7e, 0x01], &[2.0, 0.5, 512.0], 2, &mut out);
        assert_eq!(out, [2.0, -2.0, 1.0, 224.0, 1.0]);
    }
}
