"""Embedding, residual stream, activation and output head."""

import torch
from torch.nn.functional import gelu, silu

from .planting import Kind, sized

NOTHING = sized(0, words="-")


def misaligned(by):
    """The embedding of the token before."""
    return lambda value, where: torch.cat((value[: int(by)], value[: -int(by)]))


def next_row(_):
    """Ids one too large."""

    def change(value, where):
        rows = where.module.weight
        return rows[(where.given + 1) % len(rows)].to(value.dtype)

    return change


def width_root(_):
    return lambda value, where: value * value.shape[-1] ** 0.5


def not_added(_):
    """`where.given` is the residual: the branch alone is left."""
    return lambda value, where: value - where.given.to(value.dtype)


def branch_lost(_):
    return lambda value, where: where.given.to(value.dtype)


def added_twice(_):
    return lambda value, where: value + where.given.to(value.dtype)


def activation(wrong):
    """Another function of the gate; `where.given` are gate and up."""

    def make(_):
        def change(value, where):
            gate, up = where.given.to(value.dtype)
            return wrong(gate) * up

        return change

    return make


def swapped(_):
    def change(value, where):
        gate, up = where.given.to(value.dtype)
        return silu(up) * gate

    return change


def soft_capped(limit):
    return lambda value, where: limit * torch.tanh(value / limit)


def rows_rolled(_):
    return lambda value, where: value.roll(1, -1)


def tail_zero(count):
    """The last rows of the output matrix were not computed."""

    def change(value, where):
        value[..., -int(count) :] = 0
        return value

    return change


def log_probabilities(_):
    return lambda value, where: value.log_softmax(-1)


KINDS = [
    Kind("embedding: token ids misaligned", sized(1, words="by {}"), ("embed",), misaligned,
         calls=lambda call: call == 0),
    Kind("embedding: ids off by one", NOTHING, ("embed",), next_row),
    Kind("embedding: times root of the width", NOTHING, ("embed",), width_root),
    Kind("residual: not added", NOTHING, ("attn_resid", "out"), not_added),
    Kind("residual: branch lost", NOTHING, ("attn_resid", "out"), branch_lost),
    Kind("residual: added twice", NOTHING, ("attn_resid", "out"), added_twice),
    Kind("activation: gelu", NOTHING, ("mlp_act",), activation(gelu)),
    Kind("activation: quick gelu", NOTHING, ("mlp_act",), activation(lambda x: x * torch.sigmoid(1.702 * x))),
    Kind("activation: relu", NOTHING, ("mlp_act",), activation(torch.relu)),
    Kind("activation: none", NOTHING, ("mlp_act",), activation(lambda x: x)),
    Kind("activation: gate and up swapped", NOTHING, ("mlp_act",), swapped),
    Kind("logits: soft-capping", sized(30.0, 10.0, words="{}"), ("logits",), soft_capped),
    Kind("logits: rows rolled", NOTHING, ("logits",), rows_rolled),
    Kind("logits: last rows missing", sized(1, 8, words="{}"), ("logits",), tail_zero),
    Kind("logits: log probabilities", NOTHING, ("logits",), log_probabilities),
]
