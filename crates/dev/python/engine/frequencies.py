"""Rotary frequencies and the factor on cosine and sine, for every kind of scaling. All in float32, as engines hold them."""

import math

import torch


def plain(theta, dims):
    """theta^(-2i/dims) for i in 0..dims/2"""
    return 1.0 / theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)


def frequencies(config, length):
    """(frequencies, amplitude) of a call whose last position is `length` - 1."""
    return KINDS[config.rope["rope_type"]](config, config.rope, length)


def _default(config, rope, length):
    return plain(config.theta, config.head_dim), 1.0


def _linear(config, rope, length):
    return plain(config.theta, config.head_dim) / rope["factor"], 1.0


def _dynamic(config, rope, length):
    dims, longest = config.head_dim, config.max_positions
    grown = rope["factor"] * max(length, longest) / longest - (rope["factor"] - 1)
    return plain(config.theta * grown ** (dims / (dims - 2)), dims), 1.0


def llama3(plain_ones, factor, low, high, original):
    """Long waves slowed by `factor`, short ones kept, a ramp between them."""
    waves = 2 * math.pi / plain_ones
    ramp = (original / waves - low) / (high - low)
    between = (1 - ramp) * plain_ones / factor + ramp * plain_ones
    slow, fast = waves > original / low, waves < original / high
    return torch.where(slow, plain_ones / factor, torch.where(fast, plain_ones, between))


def _llama3(config, rope, length):
    ones = plain(config.theta, config.head_dim)
    original = rope.get("original_max_position_embeddings", config.max_positions)
    return llama3(ones, rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original), 1.0


def yarn_amplitude(scale, weight=1.0):
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0


def yarn_ramp(dims, theta, original, fast, slow, truncate=True):
    """The pair numbers between which frequencies pass from kept to slowed."""
    at = lambda turns: dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = at(fast), at(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, dims - 1)


def yarn(config, factor, ramp):
    low, high = ramp
    ones = plain(config.theta, config.head_dim)
    if low == high:
        high += 0.001
    slowed = ((torch.arange(config.head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return ones / factor * slowed + ones * (1 - slowed)


def yarn_settings(config):
    """factor and ramp as the configuration has them."""
    rope = config.rope
    original = rope.get("original_max_position_embeddings") or config.max_positions
    factor = rope.get("factor") or config.max_positions / original
    fast, slow = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    ramp = yarn_ramp(config.head_dim, config.theta, original, fast, slow, rope.get("truncate", True))
    return factor, ramp


def _yarn(config, rope, length):
    factor, ramp = yarn_settings(config)
    amplitude = rope.get("attention_factor")
    if amplitude is None:
        both = rope.get("mscale"), rope.get("mscale_all_dim")
        amplitude = yarn_amplitude(factor, both[0]) / yarn_amplitude(factor, both[1]) if all(both) else yarn_amplitude(factor)
    return yarn(config, factor, ramp), amplitude


KINDS = {"default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
