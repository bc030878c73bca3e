//! Elements as files store them: their values, and how many values of their format lie between two of them.

use firstdiff_tensor::DType;
use half::f16;
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};

/// Elements decoded at a time: two blocks of f64 stay in a core's first cache.
pub(crate) const BLOCK: usize = 1024;
/// Ulp distances 0, 1, 2, 3-4, 5-8, … 513-1024, and more.
pub(crate) const BUCKETS: usize = 13;
const LAST: usize = BUCKETS - 1;
/// The smallest distance in the last bucket.
const FAR: u32 = 1025;

/// Decodes floats of one of the four formats. `out` is as long as there are elements.
#[inline(always)]
pub(crate) fn decode(
    (dtype, bytes): (DType, &[u8]),
    out: &mut [f64],
    words: &mut [u16; BLOCK],
    halves: &mut [f32; BLOCK],
) {
    match dtype {
        DType::F64 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *x = f64::from_le_bytes(*b);
            }
        }
        DType::F16 => {
            for (w, b) in words.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *w = u16::from_le_bytes(*b);
            }
            let n = out.len();
            words[..n].reinterpret_cast::<f16>().convert_to_f32_slice(&mut halves[..n]);
            for (x, h) in out.iter_mut().zip(halves) {
                *x = f64::from(*h);
            }
        }
        DType::BF16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
            }
        }
        _ => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f64::from(f32::from_le_bytes(*b));
            }
        }
    }
}

/// Counts how many values of their format lie between the elements of `a` and `b`.
#[inline(always)]
pub(crate) fn ulps(dtype: DType, a: &[u8], b: &[u8], counts: &mut [u64; BUCKETS]) {
    match dtype {
        DType::F64 => count(a, b, counts, |a: [u8; 8], b| {
            let far = ordinal64(i64::from_le_bytes(a)).abs_diff(ordinal64(i64::from_le_bytes(b)));
            far.min(u64::from(FAR)) as u32
        }),
        DType::F16 | DType::BF16 => count(a, b, counts, |a: [u8; 2], b| {
            let ordinal = |x: [u8; 2]| {
                let bits = i32::from(i16::from_le_bytes(x));
                let (sign, magnitude) = (bits >> 31, bits & 0x7fff);
                (magnitude ^ sign) - sign
            };
            ((ordinal(a) - ordinal(b)).unsigned_abs()).min(FAR)
        }),
        _ => count(a, b, counts, |a: [u8; 4], b| {
            let ordinal = |x: [u8; 4]| {
                let bits = i32::from_le_bytes(x);
                let (sign, magnitude) = (bits >> 31, bits & i32::MAX);
                (magnitude ^ sign) - sign
            };
            ordinal(a).abs_diff(ordinal(b)).min(FAR)
        }),
    }
}

/// Place in the ordered list of values; zero at both zeros.
#[inline(always)]
fn ordinal64(bits: i64) -> i64 {
    let (sign, magnitude) = (bits >> 63, bits & i64::MAX);
    (magnitude ^ sign) - sign
}

#[inline(always)]
fn count<const N: usize>(
    a: &[u8],
    b: &[u8],
    counts: &mut [u64; BUCKETS],
    distance: impl Fn([u8; N], [u8; N]) -> u32,
) {
    let mut distances = [0u16; BLOCK];
    let n = a.len() / N;
    let pairs = a.as_chunks::<N>().0.iter().zip(b.as_chunks::<N>().0);
    for (d, (a, b)) in distances.iter_mut().zip(pairs) {
        *d = distance(*a, *b) as u16;
    }
    // Comparing with every bound in turn is faster than counting into a table: it vectorises.
    let mut before = n as u16;
    for (bucket, count) in counts.iter_mut().enumerate() {
        let bound = if bucket == 0 { 0 } else { 1u16 << (bucket - 1).min(15) };
        let above = match bucket {
            LAST => 0,
            _ => distances[..n].iter().fold(0u16, |sum, d| sum + u16::from(*d > bound)),
        };
        *count += u64::from(before - above);
        before = above;
    }
}
