use firstdiff_model::ops::{Activation, GateLimit, GatedAct};
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
    let (table, argument, entry) = (rounding.gelu_table(), rounding.site(2), rounding.site(3));
    let (mut cut_gate, mut cut_up) = (Vec::new(), Vec::new());
    let (gate, up) = match op.limit {
        None => (gate, up),
        Some(limit) => {
            let way = limit.gate;
            // A constant is itself rounded, once for all elements.
            let limit = rounding.site(30).store(T::from_f64(limit.at), 0);
            let below = |x: &T| if *x > limit { limit } else { *x };
            let between = |x: &T| if *x < -limit { -limit } else { below(x) };
            cut_gate.extend(gate.iter().map(|x| match way {
                GateLimit::Above => below(x),
                GateLimit::BothSides => between(x),
                GateLimit::Activated => *x,
            }));
            cut_up.extend(up.iter().map(between));
            (cut_gate.as_slice(), cut_up.as_slice())
        }
    };
    let activated = op.limit.filter(|l| l.gate == GateLimit::Activated).map(|l| l.at);
    let mut out = vec![T::ZERO; gate.len()];
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        if rounding.is_exact() && act == Activation::Silu && activated.is_none() {
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
                    let x = table.map_or(x, |f| argument.store_in(f, x, at)).to_f64();
                    let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    // Near -1 the error of tanh is not small against 1 + tanh.
                    T::from_f64(0.5 * x * (1.0 + t.tanh() * rounding.lean(2.0, 1)))
                }
                Activation::GeluErf => {
                    let x = x.to_f64();
                    // Engines add 1 to erf: near -1 its error is not small against the sum.
                    let above = erfc(-x / std::f64::consts::SQRT_2);
                    T::from_f64(0.5 * x * (above + (above - 1.0) * (rounding.lean(2.0, 1) - 1.0)))
                }
                Activation::QuickGelu => {
                    let x = x.to_f64();
                    T::from_f64(x / (1.0 + (-1.702 * x).exp()))
                }
                Activation::Relu => T::from_f64(x.to_f64().max(0.0)),
                Activation::SquaredRelu => {
                    let x = x.to_f64().max(0.0);
                    T::from_f64(x * x)
                }
                Activation::Identity => x,
            };
            let y = y.to_f64() * rounding.lean(8.0, 0);
            let y = T::from_f64(activated.map_or(y, |limit| y.min(limit)));
            let y = match table {
                Some(format) if act == Activation::GeluTanh => entry.store_in(format, y, at),
                _ => y,
            };
            *out = inner.store(y, at) * up[at];
        }
    });
    out
}

/// The complementary error function: its series near zero, its continued fraction elsewhere.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let root = std::f64::consts::PI.sqrt();
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            let add = term / f64::from(2 * n + 1);
            sum += add;
            if add.abs() < 1e-17 * sum.abs() {
                break;
            }
        }
        return 1.0 - 2.0 / root * sum;
    }
    let fraction = (1..=120).rev().fold(0.0, |rest, n| f64::from(n) / 2.0 / (x + rest));
    (-x * x).exp() / root / (x + fraction)
}

#[cfg(test)]
mod tests {
    use super::erfc;

    #[test]
    fn the_error_function_has_its_known_values() {
        for (x, y) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_544e-5),
        ] {
            // Rounding of the series at its largest term, about e^(x^2).
            assert!((erfc(x) - y).abs() < 1e-12, "{x}: {}", erfc(x));
        }
    }
}
