//! Top-k, top-p and min-p as one threshold: the smallest logit that is kept.

use super::weight::{ONE, weight};

/// Logits of the tokens that have any weight, best first, sorted only as far as somebody looks.
pub(super) struct Ranked {
    values: Vec<f32>,
    sorted: usize,
}

impl Ranked {
    pub fn new(logits: impl Iterator<Item = f32>) -> Ranked {
        // −0 and 0 are equal as logits; one of them stands for both, since sorting tells them apart.
        Ranked { values: logits.filter(|x| !x.is_nan()).map(|x| x + 0.0).collect(), sorted: 0 }
    }

    /// The value at `rank`, if there are so many.
    pub fn get(&mut self, rank: usize) -> Option<f32> {
        if rank >= self.values.len() {
            return None;
        }
        if rank >= self.sorted {
            // The few best of a large vocabulary nearly always suffice: a full sort would cost more than the model.
            let end = (rank + 1).max(256).max(self.sorted * 8).min(self.values.len());
            let rest = &mut self.values[self.sorted..];
            let count = end - self.sorted;
            if count < rest.len() {
                rest.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
            }
            rest[..count].sort_unstable_by(|a, b| b.total_cmp(a));
            self.sorted = end;
        }
        self.values.get(rank).copied()
    }
}

/// The smallest logit among the `k` largest.
pub(super) fn top_k(ranked: &mut Ranked, k: u32) -> f32 {
    match k {
        0 => f32::NEG_INFINITY,
        k => ranked.get(k as usize - 1).unwrap_or(f32::NEG_INFINITY),
    }
}

/// The smallest logit of those that are at least `floor` above which less than `p` of `total` lies.
pub(super) fn top_p(
    ranked: &mut Ranked,
    p: f64,
    total: u64,
    floor: f32,
    largest: f32,
    temperature: f64,
) -> f32 {
    let share = p * total as f64;
    let (mut above, mut smallest, mut rank) = (0u64, largest, 0);
    while let Some(value) = ranked.get(rank).filter(|v| *v >= floor) {
        if value != smallest && above as f64 >= share {
            return smallest;
        }
        smallest = value;
        above += weight(value, largest, temperature);
        rank += 1;
    }
    floor
}

/// Whether a weight is at least `p` times the largest.
pub(super) fn min_p(weight: u64, p: f64) -> bool {
    weight as f64 >= p * ONE as f64
}
