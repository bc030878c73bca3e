//! # Another activation function
//!
//! The gated MLP uses another function than the model: gelu for silu, a sigmoid with factor 1.702, squared
//! relu, none.
//!
//! ## How it shows
//!
//! `mlp_act` is wrong everywhere, most where the gate is around -1 to -3. Cosine stays at 0.99 between silu
//! and gelu.
//!
//! ## Seen in
//!
//! - paiml/aprender#2096
//!
//! ## Fix
//!
//! Take `hidden_act` from the configuration.

use firstdiff_model::OpKind;
use firstdiff_tensor::Tensor;

use crate::{Edit, Scene};

type Function = fn(f64) -> f64;

const FUNCTIONS: [(&str, Function); 7] = [
    ("silu", |x| x / (1.0 + (-x).exp())),
    ("gelu by erf", |x| gelu(x)),
    ("gelu by tanh", |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())),
    ("gate sigmoid(1.702 gate)", |x| x / (1.0 + (-1.702 * x).exp())),
    ("relu", |x| x.max(0.0)),
    ("squared relu", |x| x.max(0.0) * x.max(0.0)),
    ("no activation", |x| x),
];

pub(super) fn propose(scene: &Scene) -> Vec<Edit> {
    let Some((_, op)) = scene.find(|k| matches!(k, OpKind::GatedAct(_))) else { return vec![] };
    let OpKind::GatedAct(act) = &op.kind else { return vec![] };
    let model = match act.activation {
        firstdiff_model::ops::Activation::Silu => "silu",
        firstdiff_model::ops::Activation::GeluTanh => "gelu by tanh",
    };
    // gelu by erf for gelu by tanh is a class of its own.
    let other = |name: &&(&str, Function)| name.0 != model && !(name.0.starts_with("gelu") && model.starts_with("gelu"));
    FUNCTIONS.iter().filter(other).map(|&(name, f)| with(format!("{name} where the model has {model}"), f)).collect()
}

/// The gated activation with another function.
pub(super) fn with(detail: String, f: Function) -> Edit {
    Edit::new(detail).output(move |at, inputs, value| {
        matches!(at.op().kind, OpKind::GatedAct(_)).then_some(())?;
        let &[gate, up] = inputs else { return None };
        let tail = |t: &Tensor<f64>| t.data()[t.len().saturating_sub(value.len())..].to_vec();
        let data = tail(gate).into_iter().zip(tail(up)).map(|(g, u)| f(g) * u).collect();
        Tensor::new(value.shape().to_vec(), data).ok()
    })
}

/// `x/2 erfc(-x/sqrt(2))`.
pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * erfc(-x / std::f64::consts::SQRT_2)
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
        for (x, y) in [(0.0, 1.0), (0.5, 0.479_500_122_186_953_5), (2.0, 0.004_677_734_981_047_266), (3.0, 2.209_049_699_858_544e-5)] {
            // Rounding of the series at its largest term, about e^(x^2).
            assert!((erfc(x) - y).abs() < 1e-12, "{x}: {}", erfc(x));
        }
    }
}
