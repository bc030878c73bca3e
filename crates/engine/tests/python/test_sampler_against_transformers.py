"""The sampler against transformers' logits processors: the same tokens kept, with the same probabilities."""

import itertools
import json
import subprocess

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB = 400
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def rows():
    """Flat, lively, peaked and partly masked logits."""
    generator = torch.Generator().manual_seed(5)
    for spread in (0.1, 1.5, 6.0):
        yield torch.randn(VOCAB, generator=generator) * spread
    masked = torch.randn(VOCAB, generator=generator) * 3
    masked[::3] = -torch.inf
    yield masked


def processors(o):
    """In the order in which `generate` puts them."""
    out = LogitsProcessorList()
    if o["repetition_penalty"] != 1.0:
        out.append(RepetitionPenaltyLogitsProcessor(o["repetition_penalty"]))
    if o["temperature"] != 1.0:
        out.append(TemperatureLogitsWarper(o["temperature"]))
    if o["top_k"]:
        out.append(TopKLogitsWarper(o["top_k"]))
    if o["top_p"] < 1.0:
        out.append(TopPLogitsWarper(o["top_p"]))
    if o["min_p"] > 0.0:
        out.append(MinPLogitsWarper(o["min_p"]))
    return out


def ask(program, requests):
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


OPTIONS = [
    {**DEFAULTS, "temperature": t, "top_k": k, "top_p": p, "min_p": m, "repetition_penalty": r}
    for t, k, p, m, r in itertools.product((1.0, 0.6, 1.7), (0, 1, 30), (1.0, 0.9, 0.3), (0.0, 0.05), (1.0, 1.3))
]


@pytest.fixture(scope="session")
def sampler(example):
    return example("sampler")


def test_kept_tokens_and_probabilities_are_those_of_transformers(sampler):
    seen = [1, 5, 5, 17, 200, 399, 3]
    cases = [(row, o) for row in rows() for o in OPTIONS]
    as_json = lambda row: [x if np.isfinite(x) else "-inf" for x in row.tolist()]
    answers = ask(sampler, [{"logits": as_json(row), "seen": seen, "options": o} for row, o in cases])
    assert len(answers) == len(cases)
    for (row, o), answer in zip(cases, answers):
        scores = processors(o)(torch.tensor([seen]), row[None])[0]
        expected = torch.softmax(scores.double(), -1).numpy()
        weights = np.array(answer["weights"], dtype=np.float64)
        kept, theirs = weights > 0, expected > 0
        # A weight is a whole number of units: what is below half a unit of the best is nothing.
        theirs &= expected >= expected.max() * 2.0**-40
        assert (kept == theirs).all(), (o, np.flatnonzero(kept != theirs))
        # transformers divides by the temperature in float32: logits of up to 40 are off by half their last place.
        np.testing.assert_allclose(weights / weights.sum(), expected, rtol=4e-6, atol=2.0**-39, err_msg=str(o))


def test_equal_logits_are_kept_or_dropped_together(sampler):
    row = [2.0, 1.0, 1.0, 1.0, 0.0]
    top_k, top_p = ask(sampler, [{"logits": row, "options": {"top_k": 2}}, {"logits": row, "options": {"top_p": 0.6}}])
    for answer in (top_k, top_p):
        assert [w > 0 for w in answer["weights"]] == [True, True, True, True, False]


def test_draws_have_the_frequencies_of_transformers(sampler):
    row = next(itertools.islice(rows(), 1, None))[:40]
    o = {**DEFAULTS, "temperature": 0.8, "top_k": 12, "seed": 99}
    draws = 100_000
    [answer] = ask(sampler, [{"logits": row.tolist(), "options": o, "draws": draws}])
    expected = torch.softmax(processors(o)(torch.tensor([[0]]), row[None])[0].double(), -1).numpy() * draws
    counts = np.bincount(answer["tokens"], minlength=len(row))
    assert (counts[expected == 0] == 0).all()
    some = expected > 0
    chi = ((counts - expected)[some] ** 2 / expected[some]).sum()
    assert chi < 45, chi  # eleven degrees of freedom: exceeded about once in 200,000
