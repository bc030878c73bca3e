//! Manifold-constrained hyper-connections: the weights, into a branch, and back into the streams.

use firstdiff_model::ops::{HcExpand, HcPart, HcWeights};
use firstdiff_tensor::Real;

use super::Rounding;

/// One part of the weights, for each token, from the projection `[T, width]`. Engines compute all of it
/// in f32; exponentials and divisions are good to a few half-ulps.
pub(crate) fn weights<T: Real>(m: &[T], op: &HcWeights, base: &[T], scale: &[T], r: Rounding) -> Vec<T> {
    let n = op.streams;
    let (first, part) = op.place();
    let count = if matches!(op.part, HcPart::Mix { .. }) { n * n } else { n };
    let scale = scale.get(part).map_or(1.0, |s| s.to_f64());
    let (product, sum) = (r.site(1), r.site(2));
    let mut out = Vec::with_capacity(m.len() / op.width.max(1) * count);
    for (row, m) in m.chunks(op.width).enumerate() {
        let at = row * count;
        let x = (0..count).map(|i| {
            let x = product.hold(m[first + i].to_f64() * scale, at + i);
            sum.hold(x + base[first + i].to_f64(), at + i)
        });
        match op.part {
            HcPart::Pre => {
                out.extend(x.enumerate().map(|(i, x)| T::from_f64(sigmoid(x, r, at + i) + op.eps)))
            }
            HcPart::Post => out.extend(x.enumerate().map(|(i, x)| T::from_f64(2.0 * sigmoid(x, r, at + i)))),
            HcPart::Mix { iterations, divisor_eps, rows_first } => {
                let mut mix: Vec<f64> = x.collect();
                balance(&mut mix, n, (iterations, rows_first), (op.eps, divisor_eps), (r, at));
                out.extend(mix.into_iter().map(T::from_f64));
            }
        }
    }
    out
}

fn sigmoid(x: f64, r: Rounding, at: usize) -> f64 {
    r.site(3).hold(1.0 / (1.0 + (-x).exp()) * r.lean(4.0, 0), at)
}

/// The softmax over the second index, then Sinkhorn and Knopp.
fn balance(
    m: &mut [f64],
    n: usize,
    (iterations, rows_first): (usize, bool),
    (eps, divisor_eps): (f64, f64),
    (r, at): (Rounding, usize),
) {
    for (j, row) in m.chunks_mut(n).enumerate() {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum = row.iter().sum::<f64>() * r.site(4).factor(2.0, at + j);
        for (k, x) in row.iter_mut().enumerate() {
            let share = r.site(5).hold(*x / sum * r.lean(4.0, 1), at + j * n + k);
            *x = r.site(6).hold(share + eps, at + j * n + k);
        }
    }
    let divide = |m: &mut [f64], lines: bool, site: u64| {
        for a in 0..n {
            let place = |b: usize| if lines { a * n + b } else { b * n + a };
            let sum = (0..n).map(|b| m[place(b)]).sum::<f64>() + divisor_eps;
            let sum = sum * r.site(site).factor(1.5, at + a);
            for b in 0..n {
                m[place(b)] = r.site(site + 1).hold(m[place(b)] / sum, at + place(b));
            }
        }
    };
    divide(m, rows_first, 10);
    for i in 1..iterations as u64 {
        divide(m, true, 10 + 4 * i);
        divide(m, false, 12 + 4 * i);
    }
}

/// `sum over j of w[t, j] X[t, j]`; products and sums in the format of running sums.
pub(crate) fn collapse<T: Real>(w: &[T], x: &[T], tokens: usize, dim: usize, r: Rounding) -> Vec<T> {
    let n = w.len() / tokens.max(1);
    let mut out = Vec::with_capacity(tokens * dim);
    for t in 0..tokens {
        for c in 0..dim {
            let mut sum = 0.0;
            for j in 0..n {
                let at = (t * n + j) * dim + c;
                let product = r.site(1).hold(w[t * n + j].to_f64() * x[at].to_f64(), at);
                sum = r.site(2).hold(sum + product, at);
            }
            out.push(T::from_f64(sum));
        }
    }
    out
}

/// A branch's result back into the streams. Engines bring both kinds of weights to the format of
/// activations first, and store both terms before they add them.
pub(crate) fn expand<T: Real>(a: &[T], post: &[T], mix: &[T], x: &[T], op: &HcExpand, r: Rounding) -> Vec<T> {
    let (n, d) = (op.streams, op.dim);
    let mut out = vec![T::ZERO; a.len() * n];
    for (t, (a, out)) in a.chunks(d).zip(out.chunks_mut(n * d)).enumerate() {
        let post: Vec<T> = (0..n).map(|k| r.site(1).store(post[t * n + k], t * n + k)).collect();
        let first = t * n * n;
        let mix: Vec<T> = (0..n * n).map(|i| r.site(2).store(mix[first + i], first + i)).collect();
        let x = &x[t * n * d..][..n * d];
        for k in 0..n {
            for c in 0..d {
                let at = (t * n + k) * d + c;
                let branch = r.site(3).store(post[k] * a[c], at);
                let mut sum = 0.0;
                for j in 0..n {
                    let product = mix[j * n + k].to_f64() * x[j * d + c].to_f64();
                    sum = r.site(5 + j as u64).hold(sum + product, at);
                }
                out[k * d + c] = branch + r.site(4).store(T::from_f64(sum), at);
            }
        }
    }
    out
}
