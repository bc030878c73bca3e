"""Caches that are wrong: slots stale, shifted, overwritten, of another head; seen by attention, not by who stored."""

import torch

from .planting import Kind, sized

NOTHING = sized(0, words="-")
CACHES = ("k_cache", "v_cache")


def shifted(slots):
    return lambda value, where: value.roll(int(slots), 0)


def stale_last(_):
    """The newest slot is read before it is written."""

    def change(value, where):
        value[-1] = value[-2]
        return value

    return change


def zero_last(_):
    def change(value, where):
        value[-1] = 0
        return value

    return change


def overwritten(slot):
    """A slot holds the newest token's values: an index that wrapped."""

    def change(value, where):
        value[int(slot)] = value[-1]
        return value

    return change


def heads_rolled(_):
    return lambda value, where: value.roll(1, 1)


def one_head_late(_):
    def change(value, where):
        value[:, 0] = value[:, 0].roll(1, 0)
        return value

    return change


def layout(_):
    """[heads, slots] read as [slots, heads]."""
    return lambda value, where: value.transpose(0, 1).reshape(value.shape)


def precise_to(bits):
    """Values kept in too few bits: an 8-bit float cache that nobody declared."""
    return lambda value, where: value.to(torch.float8_e4m3fn).to(value.dtype)


DECODE = lambda call: call > 0
ONCE = lambda call: call == 2

KINDS = [
    Kind("cache: shifted by a slot", sized(1, -1, words="{:+}"), CACHES, shifted, calls=DECODE),
    Kind("cache: newest slot stale", NOTHING, CACHES, stale_last, calls=DECODE),
    Kind("cache: newest slot stale once", NOTHING, CACHES, stale_last, calls=ONCE),
    Kind("cache: newest slot zero", NOTHING, CACHES, zero_last),
    Kind("cache: a slot overwritten", sized(0, 5, words="slot {}"), CACHES, overwritten, calls=DECODE),
    Kind("cache: heads rolled", NOTHING, CACHES, heads_rolled, calls=DECODE),
    Kind("cache: one head late", NOTHING, CACHES, one_head_late),
    Kind("cache: layout", NOTHING, CACHES, layout),
    Kind("cache: in 8-bit floats", NOTHING, CACHES, precise_to),
]
# A window's cache drops keys; what is left of it is another kind of trace.
UNWINDOWED = ("llama", "llama-llama3", "qwen2", "qwen3", "blocks-llama", "blocks-qwen2", "blocks-qwen3")
KINDS = [Kind(**{**vars(kind), "models": UNWINDOWED, "runs": ("plain", "chunked", "static")}) for kind in KINDS]
