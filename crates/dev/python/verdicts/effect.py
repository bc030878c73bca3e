"""How large a fault is where it should first show, in roundings of that operation: computed beside firstdiff, in float64.

The wrong engine is compared with its right twin, which holds the same values bit for bit up to the fault. One rounding
is a half ulp drawn evenly (ulp/sqrt 12) of the tap's format; for a product whose input is brought to 8 bits or tf32
first, it is what that does to the result. Parts of a value (a token, a head, a channel) count on their own: a fault confined to
one is as large as it is there.
"""

import torch

from planted import kind_of

EXPONENT = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
MODULES = {
    "q_proj": ("self_attn.q_proj", "attn_norm"), "k_proj": ("self_attn.k_proj", "attn_norm"),
    "v_proj": ("self_attn.v_proj", "attn_norm"), "attn_out": ("self_attn.o_proj", "attn_heads"),
    "gate_proj": ("mlp.gate_proj", "mlp_norm"), "up_proj": ("mlp.up_proj", "mlp_norm"),
    "mlp_out": ("mlp.down_proj", "mlp_act"),
}


PART = 8  # elements: the roundings of fewer are a matter of luck


def rounding(value, dtype):
    """One rounding of each element to `dtype`, as a standard deviation."""
    exponent = torch.floor(torch.log2(value.abs().clamp(min=torch.finfo(dtype).tiny)))
    return torch.exp2(exponent - EXPONENT[dtype]) / 12**0.5


def module_of(model, tap):
    kind = kind_of(tap)
    if kind == "logits":
        return model.lm_head, "final_norm"
    if kind not in MODULES:
        return None, None
    path, source = MODULES[kind]
    _, layer, _ = tap.split(".")
    return model.model.layers[int(layer)].get_submodule(path), f"layers.{layer}.{source}"


def unit(shorten, variant, model, tap, values):
    """One rounding of each element of the tap, where quantised inputs are what a product rounds most."""
    value = values[tap].double()
    module, source = module_of(model, tap) if shorten else (None, None)
    if module is not None and source in values:
        x = values[source].double().flatten(1)
        moved = (shorten(x.float()).double() - x) @ module.weight.double().T
        # of one token's channels alike: some are moved by nothing, by luck
        usual = moved.pow(2).mean(-1, keepdim=True).sqrt().expand_as(moved).reshape(value.shape)
        return torch.maximum(usual, rounding(value, values[tap].dtype))
    attends = kind_of(tap) in ("attn_scores", "attn_probs", "attn_heads", "k_cache", "v_cache")
    halved = attends and values[tap].dtype == torch.float32 and variant in ("8-bit blocks", "f16 cache", "tf32")
    return rounding(value, torch.float16 if halved else values[tap].dtype)


def size(unit, step, tap, wrong, right):
    """The fault in roundings, over the whole value or the part that is worst."""
    if step >= len(right) or tap not in right[step] or wrong[step][tap].shape != right[step][tap].shape:
        return float("inf")
    unit_of = unit(tap, right[step])
    error = wrong[step][tap].double() - right[step][tap].double()
    finite = torch.isfinite(right[step][tap].double()) & (right[step][tap].double().abs() < 1e30)
    error, unit_of = torch.where(finite, error, 0.0), torch.where(finite, unit_of, 0.0)
    if not torch.isfinite(error).all():
        return float("inf")
    every = tuple(range(error.dim()))
    largest = 0.0
    for axes in (every, *(tuple(a for a in every if a != kept) for kept in every)):
        ratio = error.pow(2).sum(axes) / unit_of.pow(2).sum(axes).clamp(min=1e-300)
        if axes == every or error.numel() // ratio.numel() >= PART:
            largest = max(largest, float(ratio.sqrt().max()))
    return largest
