"""Runs a transformers model the way an engine is used, with or without a recorder around it."""

import firstdiff.transformers
import torch


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
