"""Wrong only somewhere: after a position, while decoding, in one step, in some of a head's channels."""

import torch

from .parts import token_axis
from .planting import FEW, Kind, sized


def after(position):
    """From `position` on, a tenth too large."""

    def change(value, where):
        axis = token_axis(value, where)
        value = value.clone()
        first = max(0, int(position) - where.past)
        value.narrow(axis, min(first, value.shape[axis]), max(0, value.shape[axis] - first)).mul_(1.1)
        return value

    return change


def tenth_larger(_):
    return lambda value, where: value * 1.1


def row_before(_):
    """Rows 16 and later repeat row 15, as a buffer does that is too short."""

    def change(value, where):
        axis = token_axis(value, where)
        rows = [min(row, 15) for row in range(value.shape[axis])]
        return value.index_select(axis, torch.tensor(rows))

    return change


PLACES = ("q_proj", "k_rope", "attn_heads", "attn_out", "mlp_act", "out", "embed", "logits")

KINDS = [
    Kind("after a position", sized(16, 26, words="from {}"), FEW, after),
    Kind("decode only", sized(0, words="x1.1"), PLACES, tenth_larger, calls=lambda call: call >= 1),
    Kind("prefill only", sized(0, words="x1.1"), PLACES, tenth_larger, calls=lambda call: call == 0),
    Kind("one step only", sized(0, words="x1.1"), PLACES, tenth_larger, calls=lambda call: call == 2),
    Kind("rows after 16 repeat", sized(0, words="-"), ("q_proj", "attn_heads", "mlp_out", "out", "logits"), row_before,
         calls=lambda call: call == 0),
]
