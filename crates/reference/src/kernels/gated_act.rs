use firstdiff_model::ops::{Activation, GatedAct};
use firstdiff_tensor::Real;
use rayon::prelude::*;

use super::Rounding;

/// `act(gate) * up`, both cut off where the operation has a limit. Engines store the activated gate; their exponential and division are taken to
/// err by at most eight half-ulps together: torch's own differs by as much between the vector body
/// and the scalar tail of one tensor.
pub(crate) fn gated_act<T: Real>(gate: &[T], up: &[T], op: &GatedAct, rounding: Rounding) -> Vec<T> {
    const BLOCK: usize = 4096;
    let act = op.activation;
    let inner = rounding.site(1);
    let (mut cut_gate, mut cut_up) = (Vec::new(), Vec::new());
    let (gate, up) = match op.limit {
        None => (gate, up),
        Some(limit) => {
            let limit = T::from_f64(limit);
            let below = |x: &T| if *x > limit { limit } else { *x };
            cut_gate.extend(gate.iter().map(below));
            cut_up.extend(up.iter().map(|x| if *x < -limit { -limit } else { below(x) }));
            (cut_gate.as_slice(), cut_up.as_slice())
        }
    };
    let mut out = vec![T::ZERO; gate.len()];
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        if rounding.is_exact() && act == Activation::Silu {
            let n = out.len();
            let inputs = gate[first..first + n].iter().zip(&up[first..first + n]);
            for (out, (&x, &up)) in out.iter_mut().zip(inputs) {
                *out = x / (T::ONE + (-x).exp()) * up;
            }
            return;
        }
        for (i, out) in out.iter_mut().enumerate() {
            let at = first + i;
            let x = gate[at];
            let y = match act {
                Activation::Silu => x / (T::ONE + (-x).exp()),
                Activation::GeluTanh => {
                    let x = x.to_f64();
                    let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    // Near -1 the error of tanh is not small against 1 + tanh.
                    T::from_f64(0.5 * x * (1.0 + t.tanh() * rounding.lean(2.0, 1)))
                }
            };
            let y = T::from_f64(y.to_f64() * rounding.lean(8.0, 0));
            *out = inner.store(y, at) * up[at];
        }
    });
    out
}
