//! Products of one row with a matrix: what decoding spends its time on.

use firstdiff_tensor::Real;

/// `out[i] = x . w[i]` for the rows of `w`, each as long as `x`.
///
/// Uses the widest vector instructions the processor has. Different processors may round
/// differently; one processor always rounds alike.
pub(crate) fn products<T: Real>(out: &mut [T], x: &[T], w: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions; the function does nothing else unsafe.
            return unsafe { products_avx512(out, x, w) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { products_avx2(out, x, w) };
        }
    }
    for (out, w) in out.iter_mut().zip(w.chunks_exact(x.len())) {
        *out = dot(x, w, |a, b, sum| a * b + sum);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn products_avx512<T: Real>(out: &mut [T], x: &[T], w: &[f32]) {
    for (out, w) in out.iter_mut().zip(w.chunks_exact(x.len())) {
        *out = dot(x, w, |a, b, sum| a.mul_add(b, sum));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn products_avx2<T: Real>(out: &mut [T], x: &[T], w: &[f32]) {
    for (out, w) in out.iter_mut().zip(w.chunks_exact(x.len())) {
        *out = dot(x, w, |a, b, sum| a.mul_add(b, sum));
    }
}

/// Sum of products in independent running sums, so that it vectorises.
#[inline(always)]
fn dot<T: Real>(x: &[T], w: &[f32], fused: impl Fn(T, T, T) -> T) -> T {
    const LANES: usize = 64;
    let mut sums = [T::ZERO; LANES];
    let (xs, ws) = (x.chunks_exact(LANES), w.chunks_exact(LANES));
    let mut tail = T::ZERO;
    for (a, b) in xs.remainder().iter().zip(ws.remainder()) {
        tail = fused(*a, T::from_f32(*b), tail);
    }
    for (a, b) in xs.zip(ws) {
        for i in 0..LANES {
            sums[i] = fused(a[i], T::from_f32(b[i]), sums[i]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0] + tail
}
