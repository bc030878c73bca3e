use firstdiff_model::ops::{FakeFormat, FakeQuant};
use firstdiff_tensor::{Float, Real};

/// Values through a short format and back, head by head.
pub(crate) fn fake_quant<T: Real>(x: &[T], op: &FakeQuant) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    for head in x.chunks(op.dim.max(1)) {
        let mut head: Vec<f64> = head.iter().map(|x| x.to_f64()).collect();
        match op.format {
            FakeFormat::Fp8 { kept } => {
                let end = head.len().saturating_sub(kept);
                head[..end]
                    .chunks_mut(64)
                    .for_each(|block| scaled(block, 448.0, 1e-4, |x| Float::E4M3.round(x)));
            }
            FakeFormat::TurnedFp4 => {
                hadamard(&mut head);
                head.chunks_mut(32).for_each(|block| scaled(block, 6.0, 0.0, e2m1));
            }
        }
        out.extend(head.into_iter().map(T::from_f64));
    }
    out
}

/// A block through a format whose largest value is `largest`, by the smallest power of two that makes it fit.
fn scaled(block: &mut [f64], largest: f64, floor: f64, round: impl Fn(f64) -> f64) {
    let amax = block.iter().fold(floor, |m, x| m.max(x.abs()));
    if amax == 0.0 || !amax.is_finite() {
        return;
    }
    let scale = (amax / largest).log2().ceil().exp2();
    block.iter_mut().for_each(|x| *x = round((*x / scale).clamp(-largest, largest)) * scale);
}

/// The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6; halfway goes to the even code.
fn e2m1(x: f64) -> f64 {
    let step = match x.abs() {
        a if a < 2.0 => 0.5,
        a if a < 4.0 => 1.0,
        _ => 2.0,
    };
    ((x / step).round_ties_even() * step).clamp(-6.0, 6.0)
}

/// The normalised Hadamard transform; the length is a power of two.
fn hadamard(x: &mut [f64]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let norm = (x.len() as f64).sqrt();
    x.iter_mut().for_each(|x| *x /= norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_hold_their_eight_magnitudes_and_halves_go_to_even() {
        for x in [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] {
            assert_eq!((e2m1(x), e2m1(-x)), (x, -x));
        }
        for (x, y) in [
            (0.25, 0.0),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
            (9.0, 6.0),
        ] {
            assert_eq!(e2m1(x), y, "{x}");
        }
    }

    #[test]
    fn turning_twice_is_nothing() {
        let x: Vec<f64> = (0..16).map(|i| f64::from(i * i % 7)).collect();
        let mut y = x.clone();
        hadamard(&mut y);
        assert!((y.iter().map(|y| y * y).sum::<f64>() - x.iter().map(|x| x * x).sum::<f64>()).abs() < 1e-9);
        hadamard(&mut y);
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-12));
    }

    #[test]
    fn channels_that_rotate_are_left_alone() {
        let op = FakeQuant { format: FakeFormat::Fp8 { kept: 2 }, dim: 4 };
        let y = fake_quant(&[1.03f64, -0.77, 1.03, -0.77], &op);
        assert_eq!(y, [1.0, -0.75, 1.03, -0.77]);
    }
}
