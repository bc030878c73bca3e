use firstdiff_model::ops::Rope;
use firstdiff_tensor::Real;
use rayon::prelude::*;

use super::Rounding;

/// Half-split rotary embedding of rows `[T, heads, D]`. Engines compute frequencies, angles, cosines
/// and sines in f32, store the latter two as they store activations, and round each product.
///
/// A frequency is `exp(-ln(theta) 2i/D)` and inherits the exponent's rounding multiplied by its
/// size, or is built by repeated multiplication and errs once for each factor: its relative error
/// is taken as `(1 + |ln f| + i) u`.
pub(crate) fn rope<T: Real>(x: &[T], op: &Rope, positions: &[u32], rounding: Rounding) -> Vec<T> {
    let pairs = op.dim / 2;
    let mut frequencies = op.frequencies.at(positions.iter().copied().max().unwrap_or(0));
    for (i, f) in frequencies.iter_mut().enumerate() {
        *f *= rounding.site(1).factor(1.0 + f.abs().ln().abs() + i as f64, i);
    }
    let (angle, cosine, sine) = (rounding.site(2), rounding.site(3), rounding.site(4));
    let width = op.heads * op.dim;
    // A constant that is not 1 is itself rounded.
    let amplitude = if op.amplitude == 1.0 { 1.0 } else { op.amplitude * rounding.lean(1.0, 0) };
    let mut out = vec![T::ZERO; x.len()];
    out.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(8).for_each(
        |(row, (out, x))| {
            let position = f64::from(positions[row]);
            // Cosine and sine are shared by the heads, and so are their errors.
            let table: Vec<(T, T)> = frequencies
                .iter()
                .enumerate()
                .map(|(i, f)| {
                    let at = row * pairs + i;
                    let (s, c) = (position * f * angle.factor(1.0, at)).sin_cos();
                    let c = c * amplitude * cosine.factor(1.0, at);
                    let s = s * amplitude * sine.factor(1.0, at);
                    // One draw for each pair: equal values round alike, whatever the position.
                    (cosine.store(T::from_f64(c), i), sine.store(T::from_f64(s), i))
                })
                .collect();
            for head in 0..op.heads {
                let (x, out) = (&x[head * op.dim..][..op.dim], &mut out[head * op.dim..][..op.dim]);
                for (i, &(c, s)) in table.iter().enumerate() {
                    let (a, b) = (x[i], x[i + pairs]);
                    if rounding.is_exact() {
                        out[i] = a * c - b * s;
                        out[i + pairs] = b * c + a * s;
                        continue;
                    }
                    let at = row * width + head * op.dim + i;
                    let product = |site: u64, value: T| rounding.site(site).store(value, at);
                    out[i] = product(5, a * c) - product(6, b * s);
                    out[i + pairs] = product(7, b * c) + product(8, a * s);
                }
            }
        },
    );
    out
}
