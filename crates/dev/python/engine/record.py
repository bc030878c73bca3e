"""Runs an engine, with or without faults, and writes its trace."""

from dataclasses import dataclass
from pathlib import Path

import torch

from firstdiff.trace import Raw, Writer

from . import models
from .arithmetic import ARITHMETICS
from .engine import Engine

# What hooks on PyTorch modules show: outputs of modules, and nothing inside attention or between modules.
MODULES = ("embed", "attn_norm", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attn_out", "attn_post_norm", "mlp_norm",
           "gate_proj", "up_proj", "mlp_out", "mlp_post_norm", "router_logits", "router_topk", "router_weights", "experts_out",
           "out", "final_norm", "logits")  # fmt: skip
# A batch has no single key axis: these cannot be told apart by sequence.
WITH_KEY_AXIS = ("k_cache", "v_cache", "attn_scores", "attn_probs")
ROOM = 32  # cache slots beyond the last token


@dataclass(frozen=True)
class Recorded:
    """A trace on disk and what it was made from."""

    trace: Path
    model: Path  # for `firstdiff check --model`
    tokens: list  # prompt and generated; of each sequence, for a batch


def record(model, arithmetic, out, faults=(), taps="all", prompt=None, steps=None, chunk=None, batch=None, overwrite=True):
    """Prefill of `prompt` tokens (a number, or the ids), whole or in chunks, then greedy decode steps.

    `faults` are Fault classes, planted in order; the first one's prompt, steps, chunk and batch hold where none are given.
    `taps`: "all", "modules", or a function from a full tap name to bool. `batch`: lengths of prompts that run together.
    """
    config, weights, path = models.load(model, arithmetic)
    lead = faults[0] if faults else None
    prompt = prompt if prompt is not None else lead.prompt if lead else 24
    steps = steps if steps is not None else lead.steps if lead else 5
    chunk = chunk or (lead.chunk if lead else None)
    batch = batch or (lead.batch if lead else None)
    hidden = {tap for fault in faults for tap in fault.hides} | set(WITH_KEY_AXIS if batch else ())
    if batch:
        prompts = [models.prompt_ids(length, config.vocab, seed=2 + row) for row, length in enumerate(batch)]
    else:
        prompts = [models.prompt_ids(prompt, config.vocab) if isinstance(prompt, int) else list(prompt)]
    longest = max(map(len, prompts))
    engines = [
        Engine(config, weights, ARITHMETICS[arithmetic], wanted(taps, hidden), longest + steps + ROOM) for _ in prompts
    ]
    for engine, ids in zip(engines, prompts):
        engine.batch, engine.pad = engines, longest - len(ids)
        for fault in faults:
            fault().plant(engine)
    about = {
        "producer": {"name": "engine", "version": "1"},
        "model": {"name": model, "family": config.family},
        "arithmetic": ARITHMETICS[arithmetic].declares,
        "sampling": {"do_sample": False},
        "environment": {"device": "cpu", "torch": torch.__version__},
    }
    tokens = [list(ids) for ids in prompts]
    pieces = [[ids[at : at + (chunk or len(ids))] for at in range(0, len(ids), chunk or len(ids))] for ids in prompts]
    prefill = len(pieces[0])  # chunks are for single sequences, so a batch has one
    with torch.no_grad(), Writer(out, overwrite=overwrite, **about) as writer:
        for call in range(prefill + steps):
            fed = [piece[call] if call < prefill else ids[-1:] for piece, ids in zip(pieces, tokens)]
            results = [engine.run(ids) for engine, ids in zip(engines, fed)]
            if call >= prefill - 1:
                for ids, (logits, _) in zip(tokens, results):
                    ids.append(int(logits[-1].argmax()))
            sampled = tokens[0][-1] if call >= prefill - 1 and not batch else None
            arrays = {tap: as_array(torch.cat([taps[tap] for _, taps in results])) for tap in results[0][1]}
            writer.step(
                sum(fed, []),
                arrays,
                positions=torch.cat([engine.positions for engine in engines]).tolist(),
                sequence=[row for row, ids in enumerate(fed) for _ in ids] if batch else None,
                sampled=sampled,
            )
    return Recorded(Path(out), path, tokens if batch else tokens[0])


def wanted(taps, hidden=()):
    if callable(taps):
        chosen = taps
    elif taps == "modules":
        chosen = lambda tap: kind_of(tap) in MODULES
    elif taps == "all":
        chosen = lambda tap: True
    else:
        raise ValueError(f"taps are all, modules or a function, not {taps!r}")
    return lambda tap: kind_of(tap) not in hidden and chosen(tap)


def kind_of(tap):
    return tap.rsplit(".", 1)[-1]


def as_array(value):
    value = value.contiguous()
    if value.dtype == torch.bfloat16:
        return Raw(value.view(torch.int16).numpy(), "BF16", tuple(value.shape))
    return value.numpy()
