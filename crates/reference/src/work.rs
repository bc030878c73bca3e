//! What an execution costs, known before it is executed, and a budget for it.
//!
//! Work is counted in multiply-adds: operations times elements, from the program and the number of rows alone. So a
//! budget buys the same executions on every machine and under any load, and a result that depends on a budget does
//! not depend on time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use firstdiff_model::{Counts, Op, OpKind, Program};

use crate::execute::Executor;

/// An amount of work, in multiply-adds of a matrix product.
pub type Work = u64;

/// What one element of an operation without products costs: reading, a function, a rounding. Measured beside a matrix
/// product in f64 (docs/MEASURED.md).
const ELEMENT: Work = 100;
/// What one weight costs to read and dequantise, once for all rows of an execution.
const WEIGHT: Work = 10;
/// Work per operation and step whatever its size: looking up, allocating.
const CALL: Work = 100_000;

/// How much work one core does in a second, about: the rate at which budgets in seconds are set. It is fixed;
/// docs/MEASURED.md says how it was measured.
pub const PER_SECOND: Work = 10_000_000_000;

/// Work that may still be done.
#[derive(Debug)]
pub struct Budget {
    limit: Work,
    spent: AtomicU64,
}

impl Budget {
    /// A budget of so much work.
    pub fn new(limit: Work) -> Budget {
        Budget { limit, spent: AtomicU64::new(0) }
    }

    /// No bound.
    pub fn unlimited() -> Budget {
        Budget::new(Work::MAX)
    }

    /// What one core does in so many seconds, at the fixed rate [`PER_SECOND`].
    pub fn seconds(seconds: f64) -> Budget {
        // Conversions to whole numbers saturate.
        Budget::new((seconds.max(0.0) * PER_SECOND as f64) as Work)
    }

    /// All that may be spent.
    pub fn limit(&self) -> Work {
        self.limit
    }

    /// What was spent.
    pub fn spent(&self) -> Work {
        self.spent.load(Ordering::Relaxed)
    }

    /// What is left.
    pub fn left(&self) -> Work {
        self.limit.saturating_sub(self.spent())
    }

    /// Takes `work` from the budget, if there is that much; otherwise takes nothing and says so. Who asks from several
    /// threads at once gets answers that depend on their order: give each a budget of its own ([`Budget::part`]).
    pub fn spend(&self, work: Work) -> bool {
        let take = |spent: Work| spent.checked_add(work).filter(|&sum| sum <= self.limit);
        self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// A budget of its own, at most what is left here. What it spends counts here once it is settled.
    pub fn part(&self, limit: Work) -> Budget {
        Budget::new(limit.min(self.left()))
    }

    /// Counts what a part has spent.
    pub fn settle(&self, part: &Budget) {
        let add = |spent: Work| Some(spent.saturating_add(part.spent()));
        let _ = self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

impl Executor<'_> {
    /// The work of executing the operations in `needed`, each in a step; `recorded` says whose values are read and
    /// not computed, and `counts` how many rows and keys each step has ([`crate::counts`]).
    pub fn work(
        &self,
        counts: &[Counts],
        needed: &BTreeSet<(usize, usize)>,
        recorded: &dyn Fn(usize, usize) -> bool,
    ) -> Work {
        let samples = self.arithmetic.map(|_| self.lanes as Work);
        let mut total: Work = 0;
        let mut last = None;
        for &(index, step) in needed {
            let (Some(op), Some(counts)) = (self.program.ops.get(index), counts.get(step)) else { continue };
            if last != Some(index) {
                total = total.saturating_add(weights(op, counts).saturating_mul(WEIGHT));
                last = Some(index);
            }
            // Samples differ before a product where its inputs were computed; recorded ones are what they are.
            let computed = op.inputs.iter().any(|input| !recorded(input.0, step));
            let Parts { products, elements } = parts(self.program, op, counts);
            let (of_products, of_elements) = match (samples, &op.kind) {
                (None, _) => (1, 1),
                // Executed whole in every sample.
                (Some(n), OpKind::Experts(_) | OpKind::AttnScores(_) | OpKind::AttnHeads(_)) => {
                    (n + 2, n + 2)
                }
                (Some(n), _) if computed => (n + 2, n + 2),
                // Exact, and once more for the variance.
                (Some(n), _) => (2, n + 2),
            };
            let work = products.saturating_mul(of_products);
            let work = work.saturating_add(elements.saturating_mul(ELEMENT * of_elements));
            total = total.saturating_add(work).saturating_add(CALL);
        }
        total
    }
}

/// Multiply-adds, and elements that are touched one by one.
struct Parts {
    products: Work,
    elements: Work,
}

fn parts(program: &Program, op: &Op, counts: &Counts) -> Parts {
    let elements = product(&counts.extents(&op.axes));
    let input = |number: usize| {
        let axes = op.inputs.get(number).map(|v| program.ops[v.0].axes.as_slice()).unwrap_or_default();
        counts.extents(axes)
    };
    let width = |extents: &[usize]| product(extents.get(1..).unwrap_or_default());
    let products = match &op.kind {
        OpKind::Linear(linear) => elements.saturating_mul(linear.input as Work),
        OpKind::AttnScores(scores) => elements.saturating_mul(scores.dim as Work),
        OpKind::AttnHeads(_) => elements.saturating_mul(input(0).last().copied().unwrap_or(0) as Work),
        OpKind::Experts(experts) => {
            let chosen = product(&input(1));
            chosen.saturating_mul(3 * (experts.dim as Work).saturating_mul(experts.inner as Work))
        }
        OpKind::IndexScores(_) => elements.saturating_mul(width(&input(0)).max(1)),
        OpKind::GroupedLinear(_) | OpKind::HcWeights(_) => matrices(op).saturating_mul(counts.tokens as Work),
        _ => 0,
    };
    // Most operations read as much as they write; a product's elements are counted by its terms.
    let read = match products {
        0 => (0..op.inputs.len()).map(|i| product(&input(i))).max().unwrap_or(0),
        _ => 0,
    };
    Parts { products, elements: elements.max(read) }
}

/// Weights that one execution reads.
fn weights(op: &Op, counts: &Counts) -> Work {
    match &op.kind {
        OpKind::Embed(_) | OpKind::TableChoice(_) => 0,
        OpKind::Experts(experts) => {
            // Of many experts no more are read than tokens choose.
            let used = experts.experts.len().min(counts.tokens.saturating_mul(8)) as Work;
            used.saturating_mul(3 * (experts.dim as Work).saturating_mul(experts.inner as Work))
        }
        _ => matrices(op),
    }
}

/// Elements of an operation's weights.
fn matrices(op: &Op) -> Work {
    op.kind.weights().iter().map(|(_, shape)| product(shape)).fold(0, Work::saturating_add)
}

fn product(extents: &[usize]) -> Work {
    extents.iter().fold(1, |n: Work, &extent| n.saturating_mul(extent as Work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_what_it_has_and_no_more() {
        let budget = Budget::new(10);
        assert!(budget.spend(7) && !budget.spend(4) && budget.spend(3) && !budget.spend(1));
        assert_eq!((budget.spent(), budget.left()), (10, 0));
        assert!(Budget::unlimited().spend(1 << 60));
        assert_eq!(Budget::seconds(2.0).limit(), 2 * PER_SECOND);
        assert_eq!(Budget::seconds(f64::NAN).limit(), 0);
    }

    #[test]
    fn a_part_counts_once_it_is_settled() {
        let budget = Budget::new(100);
        let part = budget.part(1000);
        assert_eq!(part.limit(), 100);
        assert!(part.spend(60) && budget.left() == 100);
        budget.settle(&part);
        assert_eq!(budget.left(), 40);
    }
}
