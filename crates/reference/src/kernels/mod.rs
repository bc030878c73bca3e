//! What each operation computes, and where an engine rounds inside it. One file an operation.
//!
//! Every kernel has one body for both uses. With [`Rounding::exact`] it is the definition. With a
//! lane's random numbers it is one of the results that an engine in that arithmetic might get:
//! inner values are rounded where engines store them, and sums and functions err as they do.

pub(crate) mod attention;
pub(crate) mod experts;
mod fake_quant;
mod gated_act;
pub(crate) mod hyper;
pub(crate) mod index_scores;
pub(crate) mod input;
mod pool;
mod rms_norm;
mod rope;
pub(crate) mod router;
mod soft_cap;
mod tail_rope;
pub(crate) mod visible;
mod wide_norm;

pub(crate) use fake_quant::fake_quant;
pub(crate) use gated_act::gated_act;
pub(crate) use pool::pool;
pub(crate) use rms_norm::rms_norm;
pub(crate) use rope::rope;
pub(crate) use soft_cap::soft_cap;
pub(crate) use tail_rope::tail_rope;
pub(crate) use wide_norm::wide_norm;

use firstdiff_tensor::{Float, Real, Tensor};

use crate::arithmetic::Arithmetic;
use crate::random::Random;

/// Where and how an engine rounds inside an operation; or not at all.
#[derive(Clone, Copy)]
pub(crate) struct Rounding<'a> {
    lane: Option<(&'a Arithmetic, Random)>,
    /// One bit for each place of a common error: the signs that this lane gives them.
    signs: u8,
    /// Every value is rounded to nearest, and nothing else errs: what most engines do.
    nearest: bool,
}

impl<'a> Rounding<'a> {
    pub fn exact() -> Self {
        Rounding { lane: None, signs: 0, nearest: false }
    }

    /// The rounding of lane `number`, with random numbers of its own. Lane 0 rounds to nearest. `turn` is the same for all lanes
    /// of one operation and varies from operation to operation.
    pub fn lane(arithmetic: &'a Arithmetic, random: Random, number: usize, turn: usize) -> Self {
        // Walsh functions: over four lanes (or eight), any two places agree in sign as often as not,
        // so their errors neither cancel nor add up in the mean square.
        let sign = |place: usize| {
            u8::from((number.saturating_sub(1) & ((place + turn) % 3 + 1)).count_ones() % 2 == 1) << place
        };
        Rounding {
            lane: Some((arithmetic, random)),
            signs: sign(0) | sign(1) | sign(2),
            nearest: number == 0,
        }
    }

    /// The rounding of another place in the same operation.
    pub fn site(self, site: u64) -> Self {
        Rounding { lane: self.lane.map(|(a, r)| (a, r.site(site))), ..self }
    }

    /// Stores an inner value.
    #[inline]
    pub fn store<T: Real>(&self, x: T, index: usize) -> T {
        match self.lane {
            None => x,
            Some((a, _)) if self.nearest => T::from_f64(a.store.round(x.to_f64())),
            Some((a, random)) => T::from_f64(a.store.round_randomly(x.to_f64(), random.bits(index))),
        }
    }

    /// Holds an inner value in the format of running sums.
    #[inline]
    pub fn hold(&self, x: f64, index: usize) -> f64 {
        match self.lane {
            None => x,
            Some((a, _)) if self.nearest => a.accumulate.round(x),
            Some((a, random)) => a.accumulate.round_randomly(x, random.bits(index)),
        }
    }

    /// The format in which this lane adds up attention's products one after another, rounding each partial sum to nearest;
    /// `None` where it adds without rounding.
    pub fn attention_in_order(&self) -> Option<Float> {
        let (a, _) = self.lane.filter(|_| self.nearest)?;
        Some(a.attention_sums()).filter(|&format| format != Float::F64)
    }

    /// A factor `1 ± size u`, the sign at random and `u` the roundoff of running sums: the largest
    /// error of `size` roundings. It is taken at
    /// its bound because one such factor may move a whole row, and a row has only one draw of it.
    #[inline]
    pub fn factor(&self, size: f64, index: usize) -> f64 {
        match self.lane {
            Some((a, random)) if !self.nearest => {
                1.0 + (a.accumulate.unit_roundoff() * size).copysign(random.symmetric(index))
            }
            _ => 1.0,
        }
    }

    /// A factor `1 ± size u` with one sign for the whole operation: what a library function that is good
    /// to `size` half-ulps may do. Such a function errs by its argument, not at random, and may lean
    /// to one side everywhere. `place` (0 to 2) tells functions of one operation apart.
    #[inline]
    pub fn lean(&self, size: f64, place: usize) -> f64 {
        match self.lane {
            Some((a, _)) if !self.nearest => {
                let sign = if self.signs >> place & 1 == 1 { -1.0 } else { 1.0 };
                1.0 + sign * size * a.accumulate.unit_roundoff()
            }
            _ => 1.0,
        }
    }

    /// `sum + x`, one more term of a running sum: rounded where every place rounds to nearest. Lanes that round at random have
    /// one factor for the whole sum instead.
    #[inline]
    pub fn add<T: Real>(&self, sum: T, x: T) -> T {
        match self.lane {
            Some((a, _)) if self.nearest => T::from_f64(a.accumulate.round(sum.to_f64() + x.to_f64())),
            _ => sum + x,
        }
    }

    /// The factor by which a sum of `n` positive terms errs when added up one after another. Every
    /// partial sum is rounded with an error uniform in `±u` of it, and may be nearly the whole sum
    /// from the start: the relative variance is at most `n u^2/3`. Taken at three deviations, the
    /// sign at random, since a row has only one draw of it.
    #[inline]
    pub fn positive_sum(&self, n: usize, index: usize) -> f64 {
        self.factor((3.0 * n as f64).sqrt(), index)
    }

    /// The mean square of a norm's row, as a running sum finds it.
    ///
    /// Where the format of sums holds every square exactly, as float32 does those of bf16, what each addition cuts off
    /// is not at random: the square of an odd number is one more than a multiple of eight, so the last bits that fall
    /// off say less than half and go down, in every row alike. Over rows of 64 to 16,384 numbers that came to -1.4 to
    /// 0.5 of [`positive_sum`](Self::positive_sum)'s bound (docs/MEASURED.md): then the bound has one sign for all rows.
    pub fn mean_square<T: Real>(&self, x: &[T], index: usize) -> f64 {
        let n = x.len();
        let mean = x.iter().fold(T::ZERO, |sum, &x| self.add(sum, x * x)).to_f64() / n as f64;
        let held = |a: &Arithmetic| {
            x.iter().map(|x| x.to_f64() * x.to_f64()).all(|square| a.accumulate.round(square) == square)
        };
        match self.lane {
            Some((a, _)) if !self.nearest && held(a) => mean * self.lean((3.0 * n as f64).sqrt(), 1),
            _ => mean * self.positive_sum(n, index),
        }
    }

    /// Whether this engine stores a norm's root.
    pub fn stores_root(&self) -> bool {
        self.lane.is_some_and(|(a, _)| a.norm_root_stored)
    }

    /// `1 / sqrt(square)`. Engines that store what they divide by store the root or its reciprocal: half of the lanes
    /// do either.
    pub fn reciprocal_root(&self, square: f64, index: usize) -> f64 {
        let root = square.sqrt();
        if !self.stores_root() {
            return 1.0 / root;
        }
        if self.nearest || self.signs & 1 == 0 {
            1.0 / self.store(root, index)
        } else {
            self.store(1.0 / root, index)
        }
    }

    /// The format of the table that this engine looks its tanh-gelu up in, if it does.
    pub fn gelu_table(&self) -> Option<Float> {
        self.lane.and_then(|(a, _)| a.gelu_table())
    }

    /// Rounds to a format of the operation's own.
    #[inline]
    pub fn store_in<T: Real>(&self, format: Float, x: T, index: usize) -> T {
        match self.lane {
            None => x,
            Some(_) if self.nearest => T::from_f64(format.round(x.to_f64())),
            Some((_, random)) => T::from_f64(format.round_randomly(x.to_f64(), random.bits(index))),
        }
    }

    pub fn is_exact(&self) -> bool {
        self.lane.is_none()
    }
}

/// Variance of a sum of products computed one after another in `format`, from `products`, the sum
/// of the squared products, and `sum`. Each partial sum is rounded with an error uniform in `u |s|`.
/// Products of random sign make the k-th partial sum about `sqrt(k/n)` of the root of `products`,
/// products of one sign about `k/n` of `sum`: `u^2/3 (n/2 products + n/3 sum^2)`, and `products`
/// once more for rounding the products themselves.
pub(crate) fn sum_variance(format: Float, n: usize, products: f64, sum: f64) -> f64 {
    let u = format.unit_roundoff();
    let n = n as f64;
    u * u / 3.0 * ((n / 2.0 + 1.0) * products + n / 3.0 * sum * sum)
}

/// The last `rows` rows of a tensor, as a slice.
pub(crate) fn tail<T: Real>(x: &Tensor<T>, rows: usize) -> &[T] {
    &x.data()[(x.rows().saturating_sub(rows)) * x.row_len()..]
}

/// `a + b` over the rows both have, counted from the end.
pub(crate) fn add<T: Real>(a: &Tensor<T>, b: &Tensor<T>) -> Vec<T> {
    let rows = a.rows().min(b.rows());
    tail(a, rows).iter().zip(tail(b, rows)).map(|(&a, &b)| a + b).collect()
}

/// A choice's value as the number it is; `None` for -1 and whatever else is no number of anything.
pub(crate) fn number<T: Real>(x: T) -> Option<usize> {
    let x = x.to_f64();
    (x >= 0.0 && x.fract() == 0.0 && x < 1e9).then_some(x as usize)
}
