use firstdiff_model::ops::TailRope;
use firstdiff_tensor::Real;

use super::Rounding;

/// Rotates the last channels of each head, in neighbouring pairs. Cosines and sines are stored as
/// activations are, products are not. Frequencies err as those of [`super::rope()`] do.
pub(crate) fn tail_rope<T: Real>(x: &[T], op: &TailRope, positions: &[u32], r: Rounding) -> Vec<T> {
    let (pairs, width) = (op.rotated / 2, op.heads * op.dim);
    let mut frequencies = op.frequencies.at(positions.iter().copied().max().unwrap_or(0));
    for (i, f) in frequencies.iter_mut().enumerate() {
        *f *= r.site(1).factor(1.0 + f.abs().ln().abs() + i as f64, i);
    }
    let (angle, cosine, sine) = (r.site(2), r.site(3), r.site(4));
    let amplitude = if op.amplitude == 1.0 { 1.0 } else { op.amplitude * r.lean(1.0, 0) };
    let sign = if op.inverse { -1.0 } else { 1.0 };
    let mut out = x.to_vec();
    for (row, out) in out.chunks_mut(width.max(1)).enumerate() {
        let position = f64::from(positions.get(row).copied().unwrap_or(0));
        for (i, f) in frequencies.iter().take(pairs).enumerate() {
            let at = row * pairs + i;
            let (s, c) = (position * f * angle.factor(1.0, at)).sin_cos();
            let c = cosine.store(T::from_f64(c * amplitude * cosine.factor(1.0, at)), i).to_f64();
            let s = sign * sine.store(T::from_f64(s * amplitude * sine.factor(1.0, at)), i).to_f64();
            for head in 0..op.heads {
                let first = head * op.dim + if op.leading { 0 } else { op.dim - op.rotated };
                let (place, other) = if op.halves {
                    (first + i, first + pairs + i)
                } else {
                    (first + 2 * i, first + 2 * i + 1)
                };
                let (a, b) = (out[place].to_f64(), out[other].to_f64());
                let at = row * width + place;
                let product = |site: u64, value: f64| r.site(site).hold(value, at);
                out[place] = T::from_f64(product(5, a * c) - product(6, b * s));
                out[other] = T::from_f64(product(7, b * c) + product(8, a * s));
            }
        }
    }
    out
}
