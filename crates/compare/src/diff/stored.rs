//! Elements as files store them: their values, and how many values of their format lie between two of them.

use firstdiff_tensor::DType;
use half::f16;
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};

/// Elements decoded at a time: two blocks of f64 stay in a core's first cache.
pub(crate) const BLOCK: usize = 1024;
/// Ulp distances 0, 1, 2, 3-4, 5-8, … 513-1024, and more.
pub(crate) const BUCKETS: usize = 13;
/// The smallest distance in the last bucket.
const FAR: u32 = 1025;

/// Decodes floats of one of the four formats. `out` is as long as there are elements.
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
    /// Neighbours mostly fall into one bucket: tables of their own keep them from waiting for each other.
    const TABLES: usize = 4;
    let mut tables = [[0u32; 16]; TABLES];
    let mut buckets = [0u8; BLOCK];
    let n = a.len() / N;
    for (bucket, (a, b)) in buckets.iter_mut().zip(a.as_chunks::<N>().0.iter().zip(b.as_chunks::<N>().0)) {
        // The exponent of 2d - 1 is the bucket: 0, 1, 2, 3-4, 5-8 …
        let odd = (2 * distance(*a, *b) as i32 - 1).max(0);
        *bucket = ((odd as f32).to_bits() >> 23).saturating_sub(126) as u8;
    }
    for four in buckets[..n].chunks(TABLES) {
        for (table, bucket) in tables.iter_mut().zip(four) {
            table[usize::from(bucket & 15)] += 1;
        }
    }
    for table in tables {
        counts.iter_mut().zip(table).for_each(|(sum, n)| *sum += u64::from(n));
    }
}
