//! Which edits are proposed and tried, within a budget of work: cheap ones first.
//!
//! What an edit costs is known before it is executed, and it is executed only if the budget has that much. Hypotheses
//! propose side by side, each with a small part of the budget; one that needs more, to fit a number in a long segment,
//! is asked again once everything else was tried. So the same finding gives the same result on every machine.

use std::collections::BTreeSet;

use firstdiff_reference::Work;
use rayon::prelude::*;

use crate::edit::Edit;
use crate::hypotheses::HYPOTHESES;
use crate::rank::SAME;
use crate::scene::Scene;
use crate::screen::{Estimate, Screen};
use crate::trial::{Places, Trial};
use crate::{Error, Watch};

/// A proposal and how it fared.
pub(crate) struct Tried {
    /// Place of its hypothesis in the list.
    pub order: usize,
    /// Its place among the proposals.
    pub number: usize,
    pub edit: Edit,
    pub residual: f64,
}

/// A proposal, before it is tried.
struct Proposed {
    order: usize,
    number: usize,
    edit: Edit,
}

/// What was tried at the first place of a finding.
#[derive(Default)]
pub(crate) struct Search {
    /// Edits that change something there.
    pub tried: Vec<Tried>,
    /// All that were looked at.
    pub looked_at: usize,
    /// Those that the budget did not reach. A hypothesis that could not propose all it might counts as one.
    pub missed: usize,
}

/// Costs within a factor of four are about the same.
const COARSE: u32 = 2;
/// Hypotheses that propose side by side.
const BATCH: usize = 16;

/// Tries every hypothesis at the scene's place.
pub(crate) fn search(
    trial: &Trial,
    scene: &Scene,
    screen: &Screen,
    places: &Places,
    watch: &dyn Watch,
) -> Result<Search, Error> {
    let here = Places::from([(scene.op, scene.step)]);
    // Screening leaves enough to measure the best of what it finds, here and then at all places.
    let measuring = |places: &Places| trial.cost_of_measuring(&Edit::new(""), places);
    let kept = measuring(&here).saturating_add(measuring(places)).min(trial.budget.left() / 2);
    let mut searcher =
        Searcher { trial, scene, screen, here, kept, watch, seen: BTreeSet::new(), found: Search::default() };
    let all: Vec<usize> = (0..HYPOTHESES.len()).collect();
    let (mut proposed, mut deferred) = (Vec::new(), Vec::new());
    for batch in all.chunks(BATCH) {
        // Half of what is there is for screening what is proposed.
        let each = trial.budget.left().saturating_sub(kept) / (2 * BATCH as Work);
        for (order, edits, refused) in searcher.propose(batch, each) {
            if refused {
                deferred.push(order);
            }
            proposed.extend(edits.into_iter().map(|edit| (order, edit)));
        }
    }
    searcher.screen(proposed)?;
    for order in deferred {
        let each = trial.budget.left().saturating_sub(kept);
        for (order, edits, refused) in searcher.propose(&[order], each) {
            searcher.found.missed += usize::from(refused);
            searcher.screen(edits.into_iter().map(|edit| (order, edit)).collect())?;
        }
    }
    Ok(searcher.found)
}

struct Searcher<'a> {
    trial: &'a Trial<'a>,
    scene: &'a Scene<'a>,
    screen: &'a Screen<'a>,
    here: Places,
    /// Work that screening leaves for measuring.
    kept: Work,
    watch: &'a dyn Watch,
    /// Edits that were looked at, by hypothesis and detail.
    seen: BTreeSet<(usize, String)>,
    found: Search,
}

impl Searcher<'_> {
    /// What some hypotheses propose, each doing at most `each` work; and whether one asked for more.
    fn propose(&self, orders: &[usize], each: Work) -> Vec<(usize, Vec<Edit>, bool)> {
        let scenes: Vec<(usize, Scene)> =
            orders.iter().map(|&order| (order, self.scene.metered(self.trial.budget.part(each)))).collect();
        let propose = |(order, scene): &(usize, Scene)| (HYPOTHESES[*order].propose)(scene);
        let edits: Vec<Vec<Edit>> = scenes.par_iter().map(propose).collect();
        let done = scenes.into_iter().zip(edits).map(|((order, scene), edits)| {
            let (spent, refused) = scene.spent();
            self.trial.budget.settle(spent);
            (order, edits, refused)
        });
        let done = done.collect();
        self.progress();
        done
    }

    /// Looks at edits: all that are affordable by their exact value, the cheapest first, then measures those that come
    /// near, the nearest first.
    fn screen(&mut self, proposed: Vec<(usize, Edit)>) -> Result<(), Error> {
        let first = self.seen.len();
        let seen = &mut self.seen;
        let new = |(order, edit): &(usize, Edit)| seen.insert((*order, edit.detail.clone()));
        let proposed: Vec<(usize, Edit)> = proposed.into_iter().filter(new).collect();
        let trial = self.trial;
        let cost = |edit: &Edit| match self.screen.is_blind() {
            true => 0,
            false => trial.plan(edit, &self.here).map_or(0, |plan| trial.cost(edit, &plan, false)),
        };
        let costs: Vec<Work> = proposed.par_iter().map(|(_, edit)| cost(edit)).collect();
        let proposed =
            proposed.into_iter().zip(first..).map(|((order, edit), number)| Proposed { order, number, edit });
        let costed = costs.into_iter().zip(proposed);
        // Of edits that cost about the same, each hypothesis's first, then its second: the likeliest comes first.
        let mut turns = vec![0usize; HYPOTHESES.len()];
        let mut turn = |order: usize| {
            turns[order] += 1;
            turns[order]
        };
        let mut costed: Vec<(u32, usize, Work, Proposed)> =
            costed.map(|(cost, p)| (cost.max(1).ilog2() / COARSE, turn(p.order), cost, p)).collect();
        costed.sort_by_key(|(coarse, turn, ..)| (*coarse, *turn));
        let mut affordable = Vec::with_capacity(costed.len());
        for (_, _, cost, edit) in costed {
            let left = trial.budget.left().saturating_sub(self.kept);
            if cost <= left && trial.budget.spend(cost) {
                affordable.push(edit);
            } else {
                self.found.missed += 1;
            }
        }
        let mut estimates = Vec::with_capacity(affordable.len());
        for some in affordable.chunks(self.screen.together()) {
            let some = some.par_iter().map(|proposed| self.screen.estimate(&proposed.edit));
            estimates.extend(some.collect::<Result<Vec<_>, Error>>()?);
            self.progress();
        }
        let mut near = Vec::new();
        for (proposed, estimate) in affordable.into_iter().zip(estimates) {
            match estimate {
                Estimate::Far(residual) => self.found.add(proposed, residual, self.screen.unedited),
                Estimate::Near(error) => near.push((error, proposed)),
            }
        }
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, proposed) in near {
            match trial.residual(&proposed.edit, &self.here, f64::INFINITY)? {
                Some(residual) => self.found.add(proposed, residual, self.screen.unedited),
                None => self.found.missed += 1,
            }
            self.progress();
        }
        Ok(())
    }

    fn progress(&self) {
        let budget = &self.trial.budget;
        self.watch.progress(budget.spent(), budget.limit());
    }
}

impl Search {
    fn add(&mut self, proposed: Proposed, residual: f64, unedited: f64) {
        self.looked_at += 1;
        // What changes nothing here is no hypothesis here.
        if (residual - unedited).abs() > SAME * unedited {
            let Proposed { order, number, edit } = proposed;
            self.tried.push(Tried { order, number, edit, residual });
        }
    }
}
