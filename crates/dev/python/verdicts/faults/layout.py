"""Right numbers in the wrong place: tokens, heads, channels and axes permuted."""

import torch

from .parts import by_head, token_axis
from .planting import ENDS, HEADS, PROJECTIONS, ROWS, Kind, sized

NOTHING = sized(0, words="-")


def tokens_rolled(_):
    """Each row is the row before."""
    return lambda value, where: value.roll(1, token_axis(value, where))


def two_tokens_swapped(_):
    def change(value, where):
        axis = token_axis(value, where)
        order = torch.arange(value.shape[axis])
        order[[0, -1]] = order[[-1, 0]]
        return value.index_select(axis, order)

    return change


def heads_rolled(_):
    return lambda value, where: by_head(value, where, lambda v: v.roll(1, 1))


def two_heads_swapped(_):
    def swap(value):
        order = torch.arange(value.shape[1])
        order[[0, 1]] = order[[1, 0]]
        return value[:, order]

    return lambda value, where: by_head(value, where, swap)


def heads_reshaped(_):
    """[heads, tokens, channels] read as [tokens, heads, channels] without transposing."""
    return lambda value, where: by_head(value, where, lambda v: v.transpose(0, 1).reshape(v.shape))


def halves_swapped(_):
    return lambda value, where: value.roll(value.shape[-1] // 2, -1)


def interleaved(_):
    """Channels in pairs where they should be in halves: the converter's other order."""
    return lambda value, where: by_head(value, where, lambda v: v.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2))


def two_channels_swapped(_):
    def change(value, where):
        order = torch.arange(value.shape[-1])
        order[[3, 17 % len(order)]] = order[[17 % len(order), 3]]
        return value[..., order]

    return change


def channels_reversed(_):
    return lambda value, where: value.flip(-1)


FLAT = (*PROJECTIONS, *ROWS, *ENDS)
MANY = lambda call: call == 0  # with one token there is nothing to permute

KINDS = [
    Kind("tokens rolled by one", NOTHING, (*FLAT, "q_rope", "attn_heads"), tokens_rolled, calls=MANY),
    Kind("two tokens swapped", NOTHING, (*FLAT, "attn_probs", "v_cache"), two_tokens_swapped, calls=MANY),
    Kind("heads rolled by one", NOTHING, (*PROJECTIONS, *HEADS, "attn_scores"), heads_rolled),
    Kind("two heads swapped", NOTHING, (*PROJECTIONS, *HEADS, "attn_probs"), two_heads_swapped),
    Kind("heads not transposed", NOTHING, ("attn_heads", "q_proj", "v_proj"), heads_reshaped, calls=MANY),
    Kind("halves swapped", NOTHING, ("q_proj", "k_proj", "q_rope", "mlp_act", "up_proj"), halves_swapped),
    Kind("pairs interleaved", NOTHING, ("q_proj", "k_proj", "q_rope"), interleaved),
    Kind("two channels swapped", NOTHING, FLAT, two_channels_swapped),
    Kind("channels reversed", NOTHING, ("attn_out", "mlp_norm", "logits"), channels_reversed),
]
