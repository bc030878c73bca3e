"""Part of a value is wrong: some tokens, some heads, some channels, one element."""

import torch

from .planting import EVERYWHERE, HEADS, PROJECTIONS, ROWS, SCORES, Kind, noise_like, sized, some


def on_tokens(count, wrong):
    """`wrong(rows)` for `count` tokens of each call; a call with one token errs in that one."""

    def change(value, where):
        axis = token_axis(value, where)
        rows = some(count, value.shape[axis], seed=21)
        return value.index_copy(axis, rows, wrong(value.index_select(axis, rows)))

    return change


def token_axis(value, where):
    return 1 if where.tap in SCORES else 0


def flipped(count):
    return on_tokens(int(count), lambda rows: -rows)


def garbage(count):
    return on_tokens(int(count), lambda rows: noise_like(rows, seed=22))


def louder_token(factor):
    return on_tokens(1, lambda rows: rows * factor)


def by_head(value, where, change):
    """`change` of [tokens, heads, channels], for values whose heads may be flat."""
    if value.dim() == 3 and where.tap in SCORES:
        return change(value.transpose(0, 1)).transpose(0, 1)
    if value.dim() == 3:
        return change(value)
    kv = where.tap in ("k_proj", "v_proj")
    heads = where.config.num_key_value_heads if kv else where.config.num_attention_heads
    return change(value.unflatten(-1, (heads, -1))).flatten(-2)


def on_heads(count, wrong):
    def change(value, where):
        def heads(value):
            which = some(count, value.shape[1], seed=23)
            return value.index_copy(1, which, wrong(value, which))

        return by_head(value, where, heads)

    return change


def other_head(count):
    """A head holds what the next one should."""
    return on_heads(int(count), lambda value, which: value[:, (which + 1) % value.shape[1]])


def flipped_head(count):
    return on_heads(int(count), lambda value, which: -value[:, which])


def louder_head(factor):
    return on_heads(1, lambda value, which: value[:, which] * factor)


def on_channels(count, wrong):
    def change(value, where):
        which = some(int(count), value.shape[-1], seed=24)
        value = value.clone()
        value[..., which] = wrong(value, which)
        return value

    return change


def zeroed_channels(count):
    return on_channels(count, lambda value, which: torch.zeros_like(value[..., which]))


def neighbour_channels(count):
    return on_channels(count, lambda value, which: value[..., (which + 1) % value.shape[-1]])


def louder_channel(factor):
    return on_channels(1, lambda value, which: value[..., which] * factor)


def one_element(factor):
    """A bit of one exponent, in one token."""

    def change(value, where):
        value = value.clone()
        last = value.shape[-1] - 3
        value[(*[size // 2 for size in value.shape[:-1]], last)] *= factor
        return value

    return change


def not_finite(number):
    def change(value, where):
        value = value.clone()
        value[(*[size // 2 for size in value.shape[:-1]], 1)] = number
        return value

    return change


HEADED = (*PROJECTIONS, *HEADS, "attn_scores", "attn_probs")
FLAT = (*PROJECTIONS, *ROWS, "final_norm", "embed")

KINDS = [
    Kind("tokens, sign flipped", sized(1, 5, words="{} of 24"), EVERYWHERE, flipped),
    Kind("tokens, garbage", sized(1, 12, words="{} of 24"), EVERYWHERE, garbage),
    Kind("one token louder", sized(1.02, 1.1, 3.0, words="x{}"),
         ("q_proj", "attn_heads", "mlp_out", "logits"), louder_token),
    Kind("heads, another's values", sized(1, words="{}"), HEADED, other_head),
    Kind("heads, sign flipped", sized(1, words="{}"), HEADED, flipped_head),
    Kind("one head louder", sized(1.02, 1.1, 1.5, words="x{}"),
         ("q_rope", "attn_scores", "attn_heads", "v_proj"), louder_head),
    Kind("channels, zeroed", sized(1, 4, words="{}"), FLAT, zeroed_channels),
    Kind("channels, the neighbour's values", sized(1, 4, words="{}"), FLAT, neighbour_channels),
    Kind("one channel louder", sized(1.02, 1.1, 2.0, words="x{}"),
         ("attn_norm", "v_proj", "attn_out", "mlp_act"), louder_channel),
    Kind("one element", sized(2.0, 256.0, words="x{}"), ("q_proj", "attn_heads", "mlp_act", "out", "logits"),
         one_element),
    Kind("not finite", sized(float("nan"), float("inf"), words="{}"), ("k_proj", "mlp_act", "logits"), not_finite),
]
