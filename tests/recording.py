"""Runs a transformers model the way an engine is used, with or without a recorder around it."""

import firstdiff.transformers
import torch

# "The tide comes in twice a day. Between the two, the sand is dry enough to walk on, and children build", and code
REAL_PROMPTS = {
    "smollm2": [504, 17662, 2216, 281, 6757, 253, 1194, 30, 10692, 260, 827, 28, 260, 4903, 314, 3498, 2001, 288]
    + [4549, 335, 28, 284, 1122, 1235],
    "gemma": [2, 818, 38268, 3952, 528, 10911, 496, 1719, 236761, 28978, 506, 1156, 236764, 506, 6784, 563, 6299, 3487, 531]
    + [3727, 580, 236764, 532, 2940, 2016],
    "qwen": [750, 3974, 6860, 24337, 982, 262, 421, 2422, 24337, 8, 2651, 220, 16, 510, 286, 470, 3589, 198, 262, 26045, 284],
}


def generate(model, ids, steps):
    """Prefill, then `steps` greedy decode calls; returns the logits of every call and the tokens."""
    out = model(torch.tensor([ids]), use_cache=True)
    logits, tokens = [out.logits[0]], []
    for _ in range(steps):
        tokens.append(int(logits[-1][-1].argmax()))
        out = model(torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return logits, tokens


def feed(model, chunks):
    """Given tokens, call by call, with a cache; returns all logits, one row a token."""
    cache, rows = None, []
    for chunk in chunks:
        out = model(torch.tensor([chunk]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0])
    return torch.cat(rows)


def record(model, trace, ids, steps, **options):
    """The trace of one generation, and where it was written."""
    with firstdiff.transformers.record(model, trace, **options) as recorder:
        generate(model, ids, steps)
    assert recorder.steps == steps + 1, "the recorder gave up"
    return trace
