"""The planted bugs themselves: each changes what the model says, only where it should, and is gone afterwards."""

import functools

import pytest
import torch
from planted import BUGS, PROMPT, STEPS, first_wrong, kind_of
from recording import feed, record
from replay import local_errors
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


@pytest.fixture(scope="module")
def right(tiny_folder):
    """The right model in float64, by name."""
    return functools.cache(lambda name: load(tiny_folder(name), torch.float64))


FLOOR = 4e-7  # relative: float32 rounds every one of these operations by less (shown below), and every bug errs by more


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", sorted({bug.model for bug in BUGS}))
def test_without_a_bug_no_operation_is_wrong(name, attention, right, tiny_folder, tmp_path):
    trace = record(load(tiny_folder(name), attention=attention), tmp_path / "trace", IDS[:PROMPT], STEPS)
    errors = local_errors(trace, right(name))
    assert max(errors.values()) < FLOOR
    assert len(errors) > 400


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_first_wrong_operation_is_the_one_expected(bug, attention, right, tiny_folder, tmp_path):
    model = load(tiny_folder(bug.model), attention=attention)
    with bug.plant(model):
        trace = record(model, tmp_path / "trace", IDS[:PROMPT], STEPS)
    recorded = lambda tap: attention == "eager" or kind_of(tap) not in ("attn_scores", "attn_probs")
    expected = first_wrong(bug.full_tap, recorded)
    wrong = {at: error for at, error in local_errors(trace, right(bug.model)).items() if error > FLOOR}
    assert next(iter(wrong)) == (bug.step, expected)
    assert {kind_of(tap) for _, tap in wrong} <= {kind_of(expected), *bug.also}
    layers = {int(tap.split(".")[1]) for _, tap in wrong if kind_of(tap) == kind_of(expected) and "." in tap}
    assert layers == set(bug.layers)
