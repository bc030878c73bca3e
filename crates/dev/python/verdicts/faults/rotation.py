"""Rotations that are wrong: angles, positions, pairs, the channels that are turned at all."""

import torch

from .planting import Kind, sized

NOTHING = sized(0, words="-")


def turned(change_angles, turn=None):
    """The rotation done again from what went in, with other angles: `change_angles(positions, frequencies)`."""

    def change(value, where):
        theta = where.config.rope_parameters["rope_theta"]
        tokens, _, dim = value.shape
        frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        positions = torch.arange(where.past, where.past + tokens, dtype=torch.float64)[:, None]
        angles = change_angles(positions, frequencies)[:, None]
        cos, sin = angles.cos(), angles.sin()
        return (turn or halves)(where.given.double(), cos, sin).to(value.dtype)

    return change


def halves(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def pairs(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def theta_off(factor):
    """Another base: frequencies err by more the faster the channel turns slowly."""
    return turned(lambda p, f: p * f ** (1 + float(factor)))


def late(positions):
    return turned(lambda p, f: (p + positions) * f)


def interleaved(_):
    return turned(lambda p, f: p * f, pairs)


def inverse(_):
    return turned(lambda p, f: -p * f)


def swapped(_):
    return turned(lambda p, f: p * f, lambda x, cos, sin: halves(x, sin, cos))


def first_channels(share):
    """Pairs beyond a share of them are not turned."""

    def angles(p, f):
        keep = torch.arange(len(f)) < share * len(f)
        return p * f * keep

    return turned(angles)


def not_turned(_):
    return turned(lambda p, f: 0 * p * f)


def table_in_bf16(_):
    """Angles rounded to bf16 before the cosine."""
    return turned(lambda p, f: (p * f).bfloat16().double())


def scaled_positions(factor):
    return turned(lambda p, f: p * f / factor)


PLAIN = ("llama", "qwen2", "qwen3", "qwen3-window", "blocks-llama", "blocks-qwen3")
TURNED = ("q_rope", "k_rope")


def kind(name, sizes, make, **more):
    return Kind(name, sizes, TURNED, make, models=PLAIN, **more)


KINDS = [
    kind("rope: base", sized(0.001, 0.01, 0.1, 0.5, words="exponent +{}"), theta_off),
    kind("rope: positions", sized(1, -1, words="{:+}"), late),
    kind("rope: positions", sized(1, words="{:+} while decoding"), late, calls=lambda call: call > 0),
    kind("rope: pairs interleaved", NOTHING, interleaved),
    kind("rope: turned backwards", NOTHING, inverse),
    kind("rope: sine and cosine swapped", NOTHING, swapped),
    kind("rope: some channels not turned", sized(0.5, 0.75, words="{} of them turned"), first_channels),
    kind("rope: not applied", NOTHING, not_turned),
    kind("rope: angles in bf16", NOTHING, table_in_bf16, formats=("f32", "q8")),
    kind("rope: linear scaling", sized(4.0, words="/{}"), scaled_positions),
]
