//! What a trace shows of its sequences: a sequence that begins above position 0, or jumps, has keys that no step wrote.

use std::collections::BTreeMap;

use firstdiff_reference::{KeyLabel, StepInput};

/// Positions, as runs `from..to` in ascending order that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions(Vec<(u32, u32)>);

impl Positions {
    fn insert(&mut self, position: u32) {
        let at = self.0.partition_point(|run| run.1 < position);
        match self.0.get_mut(at) {
            Some(run) if run.0 <= position && position < run.1 => return,
            Some(run) if run.1 == position => run.1 += 1,
            Some(run) if run.0 == position + 1 => run.0 = position,
            _ => self.0.insert(at, (position, position + 1)),
        }
        if at + 1 < self.0.len() && self.0[at].1 == self.0[at + 1].0 {
            self.0[at].1 = self.0.remove(at + 1).1;
        }
    }

    /// Those below `end`.
    fn below(&self, end: u32) -> Positions {
        let cut = |run: &(u32, u32)| (run.0 < end).then(|| (run.0, run.1.min(end)));
        Positions(self.0.iter().filter_map(cut).collect())
    }

    /// The first position of `from..=to` that is not among them.
    pub fn first_missing(&self, from: u32, to: u32) -> Option<u32> {
        let after = self.0.iter().find(|run| run.0 <= from && from < run.1).map_or(from, |run| run.1);
        (after <= to).then_some(after)
    }

    /// The runs between them, from position 0 on.
    pub fn gaps(&self) -> Vec<(u32, u32)> {
        let ends = std::iter::once(0).chain(self.0.iter().map(|run| run.1));
        ends.zip(&self.0).map(|(end, run)| (end, run.0)).filter(|(from, to)| from < to).collect()
    }

    /// The last one.
    pub fn last(&self) -> Option<u32> {
        self.0.last().map(|run| run.1 - 1)
    }
}

/// A sequence of a step, of which some keys are not in the trace.
#[derive(Clone, Debug)]
pub(crate) struct Incomplete {
    pub sequence: i64,
    /// What is in the trace so far, this step's rows included.
    pub shown: Positions,
}

impl Incomplete {
    /// `sequence 0 begins at position 64: its first 64 keys are not in the trace`.
    pub fn why(&self) -> String {
        let keys = |n: u32| if n == 1 { "key is" } else { "keys are" };
        match self.shown.gaps().first() {
            Some(&(0, to)) => format!(
                "sequence {} begins at position {to}: its first {to} {} not in the trace",
                self.sequence,
                keys(to)
            ),
            Some(&(from, to)) => format!(
                "sequence {} jumps from position {} to {to}: the {} not in the trace",
                self.sequence,
                from - 1,
                if to - from == 1 {
                    "key between them is".into()
                } else {
                    format!("{} keys between them are", to - from)
                }
            ),
            None => format!("sequence {} is complete", self.sequence),
        }
    }
}

/// For each step, those of its sequences that are incomplete.
pub(crate) fn incomplete(steps: &[StepInput]) -> Vec<Vec<Incomplete>> {
    let mut shown: BTreeMap<i64, Positions> = BTreeMap::new();
    let mut out = Vec::with_capacity(steps.len());
    for step in steps {
        let shared: Vec<(i64, Positions)> = step
            .forks
            .iter()
            .map(|f| (f.sequence, shown.get(&f.parent).map(|p| p.below(f.length)).unwrap_or_default()))
            .collect();
        shown.extend(shared);
        let mut begun: Vec<i64> = Vec::new();
        for (&sequence, &position) in step.sequence.iter().zip(&step.positions) {
            let of = shown.entry(sequence).or_default();
            if !begun.contains(&sequence) {
                begun.push(sequence);
                if of.last().is_some_and(|last| last >= position) {
                    *of = of.below(position);
                }
            }
            of.insert(position);
        }
        let with_gaps = |sequence: &i64| {
            let of = shown.get(sequence).filter(|of| !of.gaps().is_empty())?;
            Some(Incomplete { sequence: *sequence, shown: of.clone() })
        };
        out.push(begun.iter().filter_map(with_gaps).collect());
    }
    out
}

/// The positions that a row looks at, from the first in its window to its own.
pub(crate) fn looks_at(row: &KeyLabel, window: Option<usize>) -> (u32, u32) {
    let before = window.map_or(row.position, |w| u32::try_from(w.saturating_sub(1)).unwrap_or(u32::MAX));
    (row.position.saturating_sub(before), row.position)
}

#[cfg(test)]
mod tests {
    use firstdiff_reference::Fork;

    use super::*;

    fn step(rows: &[(i64, u32)]) -> StepInput {
        StepInput {
            token_ids: vec![0; rows.len()],
            positions: rows.iter().map(|r| r.1).collect(),
            sequence: rows.iter().map(|r| r.0).collect(),
            ..StepInput::default()
        }
    }

    fn whys(steps: &[StepInput]) -> Vec<Vec<String>> {
        incomplete(steps).iter().map(|s| s.iter().map(Incomplete::why).collect()).collect()
    }

    #[test]
    fn positions_join_where_they_touch() {
        let mut p = Positions::default();
        [5, 7, 6, 0, 6].into_iter().for_each(|x| p.insert(x));
        assert_eq!(p, Positions(vec![(0, 1), (5, 8)]));
        assert_eq!(
            (p.first_missing(5, 7), p.first_missing(5, 9), p.first_missing(3, 9)),
            (None, Some(8), Some(3))
        );
        assert_eq!(p.gaps(), [(1, 5)]);
    }

    #[test]
    fn a_sequence_that_begins_late_or_jumps_is_incomplete_from_then_on() {
        let steps = [step(&[(0, 64), (0, 65)]), step(&[(0, 66), (1, 0)]), step(&[(1, 4)])];
        assert_eq!(
            whys(&steps),
            [
                vec!["sequence 0 begins at position 64: its first 64 keys are not in the trace"],
                vec!["sequence 0 begins at position 64: its first 64 keys are not in the trace"],
                vec!["sequence 1 jumps from position 0 to 4: the 3 keys between them are not in the trace"],
            ]
        );
    }

    #[test]
    fn going_back_and_sharing_leave_no_gap() {
        let mut forked = step(&[(1, 2)]);
        forked.forks = vec![Fork { sequence: 1, parent: 0, length: 2 }];
        let steps = [step(&[(0, 0), (0, 1), (0, 2)]), step(&[(0, 1)]), forked.clone()];
        assert!(whys(&steps).iter().all(Vec::is_empty));
        forked.forks[0].length = 1;
        assert_eq!(whys(&[steps[0].clone(), forked])[1].len(), 1);
    }

    #[test]
    fn a_position_of_four_billion_costs_nothing() {
        assert_eq!(whys(&[step(&[(0, u32::MAX - 1)])])[0].len(), 1);
    }
}
