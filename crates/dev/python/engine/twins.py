"""Faults of different classes that leave the same trace: nothing recorded can tell them apart. `python -m engine.twins`

Each fault is planted beside every other one that starts at the same tap and step, in the same model, in float32. A bench
that asks for one name must accept the other's.
"""

import sys

import torch

from . import models
from .arithmetic import ARITHMETICS
from .engine import Engine
from .faults import FAULTS
from .record import wanted


def values(fault, like, arithmetic):
    """Every tap of a run of `fault` in the model and with the tokens of `like`; None where it cannot run there."""
    config, weights, _ = models.load(like.model, arithmetic)
    ids = models.prompt_ids(like.prompt, config.vocab)
    engine = Engine(config, weights, ARITHMETICS[arithmetic], wanted("all", (*like.hides, *fault.hides)), like.prompt + 40)
    chunk = like.chunk or len(ids)
    calls = [ids[at : at + chunk] for at in range(0, len(ids), chunk)] + [[token] for token in ids[:3]]
    try:
        fault().plant(engine)
        with torch.no_grad():
            return [engine.run(call)[1] for call in calls]
    except Exception:  # a fault of another family's settings
        return None


def same(a, b):
    """Equal up to rounding wherever both have a tap."""
    return all(
        torch.allclose(ours[tap].float(), theirs[tap].float(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for ours, theirs in zip(a, b)
        for tap in ours.keys() & theirs.keys()
    )


def main():
    torch.set_num_threads(1)
    found = 0
    for title, fault in FAULTS.items():
        if fault.batch:
            continue
        arithmetic = "f32" if "f32" in fault.arithmetics else fault.arithmetics[0]
        own = values(fault, fault, arithmetic)
        for other_title, other in FAULTS.items():
            near = other.step == fault.step and other.chunk == fault.chunk and set(other.first) & set(fault.first)
            if other.id == fault.id or other.batch or not near or arithmetic not in other.arithmetics:
                continue
            theirs = values(other, fault, arithmetic)
            if theirs is not None and same(own, theirs):
                found += 1
                print(f"{title} in {fault.model} = {other_title}", flush=True)
    print(f"{found} pairs")


if __name__ == "__main__":
    sys.exit(main())
