"""Attempts with faults of `engine`, the second implementation in torch: smallest files first."""

from cases.attempt import Attempt
from engine.faults import FAULTS
from engine.record import kind_of, record

# float32 holds what the others cannot show.
ARITHMETICS = ("bf16", "f16", "f32", "q8", "q4")
ATTENTION = ("attn_norm", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rope", "k_rope", "k_cache", "v_cache",
             "attn_scores", "attn_probs", "attn_heads", "attn_out", "attn_post_norm", "attn_resid")  # fmt: skip
MLP = ("attn_resid", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "router_logits", "router_topk", "router_weights",
       "experts_out", "shared_gate_proj", "shared_up_proj", "shared_act", "shared_out", "mlp_out", "mlp_post_norm", "out")  # fmt: skip


def attempts():
    """(class, attempt) of every fault that has a class; variants with short prompts first."""
    for fault in sorted(FAULTS.values(), key=lambda fault: fault.prompt):
        known = [a for a in ARITHMETICS if a in fault.arithmetics and a not in fault.faint]
        for arithmetic in known[:3] if fault.id else ():
            for size in ("least", "small", "whole"):
                yield fault.id, attempt(fault, arithmetic, size)


def attempt(fault, arithmetic, size):
    settings = {}
    if size != "whole" and not fault.batch:
        # Prompts and steps that a fault does not ask for are shortened.
        prefill = -(-fault.prompt // fault.chunk) if fault.chunk else 1
        settings["steps"] = max(2, fault.step + 2 - prefill)
        if fault.prompt == 24 and not fault.chunk:
            settings["prompt"] = 12
    taps = around(fault, to_the_fault=size == "least")
    make = lambda trace: record(fault.model, arithmetic, trace, faults=[fault], taps=taps, **settings).model
    return Attempt(fault.title(), arithmetic, fault.first, fault.wrong, make)


def around(fault, to_the_fault):
    """The taps near the fault: in two of its layers, those of attention or of the MLP, with what they start from."""
    kinds = set(fault.first)
    if kinds <= {"embed", "final_norm", "logits"}:
        return lambda tap: tap in ("embed", "final_norm", "logits_raw", "logits") or tap.endswith("layers.3.out")
    layers = (fault.layers or (0, 1))[:2]
    wanted = set()
    for stage in (ATTENTION, MLP):
        touched = [place for place, kind in enumerate(stage) if kind in kinds]
        if touched:
            wanted |= set(stage[: touched[-1] + 1] if to_the_fault else stage)

    def keep(tap):
        if tap in fault.needs:
            return True
        if not tap.startswith("layers."):
            return tap == "embed" or tap in kinds
        layer, kind = int(tap.split(".")[1]), kind_of(tap)
        return layer in layers and kind in wanted or kind == "out" and layer + 1 in layers

    return keep
