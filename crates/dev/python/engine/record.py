"""Runs an engine, with or without faults, and writes its trace."""

from dataclasses import dataclass
from pathlib import Path

import torch

from firstdiff.trace import Raw, Writer

from . import models
from .arithmetic import ARITHMETICS
from .engine import Engine

# What hooks on PyTorch modules show: outputs of modules, and nothing inside attention or between modules.
MODULES = ("embed", "attn_norm", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attn_out", "mlp_norm", "gate_proj",
           "up_proj", "mlp_out", "out", "final_norm", "logits")  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """A trace on disk and what it was made from."""

    trace: Path
    model: Path  # for `firstdiff check --model`
    tokens: list  # prompt and generated


def record(model, arithmetic, out, faults=(), taps="all", prompt=None, steps=None, chunk=None, overwrite=True):
    """Prefill of `prompt` tokens (a number, or the ids), whole or in chunks, then greedy decode steps.

    `faults` are Fault classes, planted in order; the first one's prompt, steps and chunk hold where none are given.
    `taps`: "all", "modules", or a function from a full tap name to bool.
    """
    config, weights, path = models.load(model, arithmetic)
    lead = faults[0] if faults else None
    prompt = prompt if prompt is not None else lead.prompt if lead else 24
    steps = steps if steps is not None else lead.steps if lead else 5
    chunk = chunk or (lead.chunk if lead else None)
    ids = models.prompt_ids(prompt, config.vocab) if isinstance(prompt, int) else list(prompt)
    hidden = {tap for fault in faults for tap in fault.hides}
    engine = Engine(config, weights, ARITHMETICS[arithmetic], wanted(taps, hidden))
    for fault in faults:
        fault().plant(engine)
    pieces = [ids[at : at + chunk] for at in range(0, len(ids), chunk)] if chunk else [ids]
    about = {
        "producer": {"name": "engine", "version": "1"},
        "model": {"name": model, "family": config.family},
        "arithmetic": ARITHMETICS[arithmetic].declares,
        "sampling": {"do_sample": False},
        "environment": {"device": "cpu", "torch": torch.__version__},
    }
    tokens = list(ids)
    with torch.no_grad(), Writer(out, overwrite=overwrite, **about) as writer:
        for step in range(len(pieces) + steps):
            last = step >= len(pieces) - 1
            fed = pieces[step] if step < len(pieces) else tokens[-1:]
            logits, values = engine.run(fed)
            token = int(logits[-1].argmax()) if last else None
            arrays = {name: as_array(value) for name, value in values.items()}
            writer.step(fed, arrays, positions=engine.positions.tolist(), sampled=token)
            if last:
                tokens.append(token)
    return Recorded(Path(out), path, tokens)


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
