//! Floats of 4 and 8 bits. Every value is exact in binary32.

/// The 16 values of E2M1: 2 bits of exponent, 1 of mantissa, then the sign.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// E2M1 of both nibbles of a byte, the lower one first.
static E2M1_PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [E2M1[byte & 15], E2M1[byte >> 4]];
        byte += 1;
    }
    pairs
};

/// One row of E2M1, two elements a byte, times a scale for each `N` elements, which are `BYTES` bytes.
pub(super) fn scaled_pairs<const BYTES: usize, const N: usize>(
    packed: &[u8],
    scales: &[f32],
    out: &mut [f32],
) {
    let blocks = packed.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0);
    for ((packed, out), &scale) in blocks.zip(scales) {
        for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
            let [low, high] = E2M1_PAIRS[usize::from(byte)];
            *pair = [low * scale, high * scale];
        }
    }
}

/// Every value of E4M3.
pub(crate) static E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        values[byte] = e4m3(byte as u8);
        byte += 1;
    }
    values
};

/// 4 bits of exponent with bias 7, 3 of mantissa; no infinity, and NaN only where all bits but the sign are set.
pub(crate) const fn e4m3(byte: u8) -> f32 {
    let (sign, exponent, mantissa) = (((byte >> 7) as u32) << 31, (byte >> 3 & 15) as u32, (byte & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        // Steps of 2^-9 below the smallest normal number.
        (0, _) => mantissa as f32 * (1.0 / 512.0),
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// 5 bits of exponent with bias 15, 2 of mantissa; infinity and NaN as binary16 has them.
pub(crate) const fn e5m2(byte: u8) -> f32 {
    let (sign, exponent, mantissa) = (((byte >> 7) as u32) << 31, (byte >> 2 & 31) as u32, (byte & 3) as u32);
    let magnitude = match (exponent, mantissa) {
        (31, 0) => f32::INFINITY,
        (31, _) => f32::NAN,
        // Steps of 2^-16 below the smallest normal number.
        (0, _) => mantissa as f32 * (1.0 / 65536.0),
        _ => f32::from_bits((exponent + 112) << 23 | mantissa << 21),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// A power of two: `2^(byte - 127)`, and NaN for 255.
pub(crate) const fn e8m0(byte: u8) -> f32 {
    match byte {
        255 => f32::NAN,
        // 2^-127 is subnormal in binary32.
        0 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits((byte as u32) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_have_their_largest_and_smallest_numbers() {
        assert_eq!((e4m3(0x7e), e4m3(0x01), e4m3(0x88)), (448.0, 2f32.powi(-9), -(2f32.powi(-6))));
        assert_eq!((e5m2(0x7b), e5m2(0x01), e5m2(0xfc)), (57344.0, 2f32.powi(-16), f32::NEG_INFINITY));
        assert_eq!((e8m0(127), e8m0(254), e8m0(1)), (1.0, 2f32.powi(127), 2f32.powi(-126)));
        assert_eq!(f64::from(e8m0(0)), 2f64.powi(-127));
    }

    #[test]
    fn not_a_number_is_exactly_where_the_formats_have_it() {
        let nan = |of: fn(u8) -> f32| (0..=255).filter(|&b| of(b).is_nan()).collect::<Vec<u8>>();
        assert_eq!(nan(e4m3), [0x7f, 0xff]);
        assert_eq!(nan(e5m2), [0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff]);
        assert_eq!(nan(e8m0), [255]);
    }

    #[test]
    fn values_grow_with_their_bits() {
        assert!((0..0x7e).all(|b| e4m3(b) < e4m3(b + 1)));
        assert!((0..0x7c).all(|b| e5m2(b) < e5m2(b + 1)));
        assert!((0..254).all(|b| e8m0(b + 1) == 2.0 * e8m0(b)));
        assert!((0..7).all(|b| E2M1[b] < E2M1[b + 1] && E2M1[b + 8] == -E2M1[b]));
    }

    #[test]
    fn the_low_nibble_comes_first() {
        assert_eq!(E2M1_PAIRS[0xf1], [0.5, -6.0]);
    }
}
