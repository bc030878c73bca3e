"""The planted bugs themselves: each changes what the model says, only where it should, and is gone afterwards."""

import pytest
import torch
from planted import BUGS, PROMPT, STEPS
from recording import feed
from tiny import load, prompt_ids

IDS = prompt_ids(PROMPT + STEPS, seed=5)
CALLS = [IDS[:PROMPT], *([token] for token in IDS[PROMPT:])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_changes_the_logits_from_its_first_step_on_and_is_undone(bug, attention, tiny_folder):
    model = load(tiny_folder(bug.model), attention=attention)
    before = feed(model, CALLS)
    with bug.plant(model):
        broken = feed(model, CALLS)
    assert torch.equal(before, feed(model, CALLS)), "still planted after the block"
    rows = PROMPT + bug.step - 1 if bug.step else 0
    assert torch.equal(before[:rows], broken[:rows]), "wrong before the step it should start at"
    exact = feed(load(tiny_folder(bug.model), dtype=torch.float64, attention=attention), CALLS)
    rounding = (before - exact).abs().max()
    # far outside what float32 itself does to these logits: nobody can call this rounding
    assert (broken - exact)[rows:].abs().max() > 10 * rounding


def test_every_bug_has_its_own_name():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 14
