"""Norms that are wrong."""

import torch

from .planting import Kind, sized

NOTHING = sized(0, words="-")
NORMS = ("attn_norm", "mlp_norm", "final_norm")
PER_HEAD = ("q_norm", "k_norm")
THIRD = ("qwen3", "qwen3-window", "qwen3-tied-biases", "blocks-qwen3")


def again(formula):
    """The norm done again: `formula(x, weight, eps)`."""

    def change(value, where):
        x, norm = where.given.to(value.dtype), where.module
        return formula(x, norm.weight.to(value.dtype), norm.variance_epsilon)

    return change


def rms(x, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def other_eps(eps):
    return again(lambda x, weight, _: weight * rms(x, eps))


def centred(_):
    """A layer norm: the mean is taken off first."""
    return again(lambda x, weight, eps: weight * rms(x - x.mean(-1, keepdim=True), eps))


def without_weight(_):
    return again(lambda x, weight, eps: rms(x, eps))


def one_plus_weight(_):
    return again(lambda x, weight, eps: (1 + weight) * rms(x, eps))


def l2(_):
    return again(lambda x, weight, eps: weight * x / x.norm(dim=-1, keepdim=True).clamp(min=eps))


def identity(_):
    return again(lambda x, weight, eps: x)


def over_all_heads(_):
    """One mean over every head's channels together."""
    return again(lambda x, weight, eps: weight * x * torch.rsqrt(x.pow(2).mean((-2, -1), keepdim=True) + eps))


def without_last(count):
    """A reduction that leaves out the last elements, as a loop over whole vectors does."""

    def formula(x, weight, eps):
        square = x[..., : -int(count)].pow(2).sum(-1, keepdim=True) / x.shape[-1]
        return weight * x * torch.rsqrt(square + eps)

    return again(formula)


KINDS = [
    Kind("norm: eps", sized(1e-5, 1e-3, words="{} for 1e-6"), NORMS, other_eps, formats=("f32",),
         models=("llama", "qwen2", "qwen3")),
    Kind("norm: eps", sized(1e-5, words="{} for 1e-6, small values"), ("attn_norm",), other_eps, models=("quiet",),
         layers=({0},), formats=("f32", "bf16", "f16")),
    Kind("norm: mean taken off", NOTHING, NORMS, centred),
    Kind("norm: without weight", NOTHING, (*NORMS, *PER_HEAD), without_weight),
    Kind("norm: 1 + weight", NOTHING, NORMS, one_plus_weight),
    Kind("norm: by length, not by mean square", NOTHING, NORMS, l2),
    Kind("norm: not applied", NOTHING, (*NORMS, *PER_HEAD), identity),
    Kind("norm: over all heads", NOTHING, PER_HEAD, over_all_heads),
    Kind("norm: last elements left out", sized(4, words="{} of 64"), NORMS, without_last),
]
