"""What each planted bug must look like to firstdiff: the first wrong tap, in which layers, at which step."""

from dataclasses import dataclass, replace
from typing import Callable

import bugs

LAYERS = 4  # of the tiny models
PROMPT, STEPS = 24, 5

# One layer in program order, each tap with the operation that makes it and the taps that operation reads.
# `in` is the residual stream before the layer.
LAYER = {
    "attn_norm": ("rms_norm", ["in"]),
    "q_proj": ("linear", ["attn_norm"]),
    "k_proj": ("linear", ["attn_norm"]),
    "v_proj": ("linear", ["attn_norm"]),
    "q_norm": ("rms_norm", ["q_proj"]),
    "k_norm": ("rms_norm", ["k_proj"]),
    "q_rope": ("rope", ["q_norm", "q_proj"]),
    "k_rope": ("rope", ["k_norm", "k_proj"]),
    "k_cache": ("kv_cache", ["k_rope"]),
    "v_cache": ("kv_cache", ["v_proj"]),
    "attn_scores": ("attn_scores", ["q_rope", "k_cache"]),
    "attn_probs": ("attn_probs", ["attn_scores"]),
    "attn_heads": ("attn_heads", ["attn_probs", "v_cache"]),
    "attn_out": ("linear", ["attn_heads"]),
    "attn_resid": ("add", ["in", "attn_out"]),
    "mlp_norm": ("rms_norm", ["attn_resid"]),
    "gate_proj": ("linear", ["mlp_norm"]),
    "up_proj": ("linear", ["mlp_norm"]),
    "mlp_act": ("gated_act", ["gate_proj", "up_proj"]),
    "mlp_out": ("linear", ["mlp_act"]),
    "out": ("add", ["attn_resid", "mlp_out"]),
}
ENDS = {"embed": ("embed", []), "final_norm": ("rms_norm", ["last"]), "logits": ("linear", ["final_norm"])}


@dataclass(frozen=True)
class Bug:
    """`tap` is the first wrong one when everything that eager attention shows is recorded.

    `also` are further operations that the same mistake makes wrong in their own right: they may be found, others not.
    """

    plant: Callable
    model: str
    tap: str
    layers: tuple = tuple(range(LAYERS))
    step: int = 0
    also: tuple = ()
    faint: bool = False  # fades as the residual stream grows: with few taps the last layers may lie within the floor
    smollm2: bool = True  # visible above the rounding of bfloat16 too

    @property
    def name(self):
        return self.plant.__name__

    @property
    def taps(self):
        return {self.tap, *self.also}

    @property
    def full_tap(self):
        return f"layers.{self.layers[0]}.{self.tap}" if self.layers else self.tap


SLIDING = (2, 3)  # of qwen2-window

BUGS = [
    Bug(bugs.other_rope_theta, "llama", "q_rope", also=("k_rope",)),
    Bug(bugs.interleaved_pairs, "qwen3", "q_rope", also=("k_rope",)),
    Bug(bugs.rope_scaling_ignored, "llama-llama3", "q_rope", also=("k_rope",), smollm2=False),
    Bug(bugs.decode_positions_off_by_one, "qwen2", "q_rope", step=1, also=("k_rope",)),
    Bug(bugs.qkv_biases_zeroed, "qwen2", "q_proj", also=("k_proj", "v_proj"), smollm2=False),
    Bug(bugs.k_bias_zeroed, "qwen2", "k_proj", smollm2=False),
    Bug(bugs.k_norm_missing, "qwen3", "k_norm", smollm2=False),
    Bug(bugs.up_proj_louder_in_layer_3, "llama", "up_proj", layers=(3,)),
    Bug(bugs.o_proj_rows_swapped_in_layer_2, "llama", "attn_out", layers=(2,)),
    Bug(bugs.o_proj_transposed_in_layer_1, "llama", "attn_out", layers=(1,)),
    Bug(bugs.wrong_output_head, "llama", "logits", layers=(), smollm2=False),
    Bug(bugs.tied_head_replaced, "llama-tied", "logits", layers=()),
    Bug(bugs.norm_eps_swapped, "llama", "attn_norm", also=("mlp_norm", "final_norm"), faint=True, smollm2=False),
    Bug(bugs.norm_overwrites_residual, "llama", "attn_resid"),
    Bug(bugs.final_norm_missing, "qwen2", "final_norm", layers=()),
    Bug(bugs.attention_scale_missing, "llama", "attn_scores"),
    Bug(bugs.v_head_shifted_when_read, "qwen3", "attn_heads"),
    Bug(bugs.v_head_shifted_when_stored, "qwen2", "v_cache"),
    Bug(bugs.gqa_tiled, "llama", "attn_scores", also=("attn_heads",)),
    Bug(bugs.causal_mask_off_by_one, "llama", "attn_probs"),
    Bug(bugs.causal_mask_missing, "qwen3", "attn_probs"),
    # while decoding, the window's cache has dropped keys and probabilities are not recorded: heads show it there
    Bug(
        bugs.sliding_window_off_by_one,
        "qwen2-window",
        "attn_probs",
        layers=SLIDING,
        also=("attn_heads",),
        smollm2=False,
    ),
    Bug(
        bugs.stale_slot_at_one_decode_step,
        "llama",
        "k_cache",
        step=bugs.STALE_DECODE_STEP,
        also=("v_cache",),
    ),
    Bug(bugs.gate_and_up_swapped, "llama", "mlp_act"),
    Bug(bugs.gelu_for_silu, "qwen2", "mlp_act"),
]
BY_NAME = {bug.name: bug for bug in BUGS}

SMOLLM2_LAYERS = 30
SMOLLM2_BUGS = [
    replace(bug, model="smollm2", layers=tuple(range(SMOLLM2_LAYERS)) if len(bug.layers) == LAYERS else bug.layers)
    for bug in BUGS
    if bug.smollm2
]


def operation(tap):
    """`layers.0.q_rope` -> `rope`"""
    return (LAYER | ENDS)[kind_of(tap)][0]


def kind_of(tap):
    return tap.rsplit(".", 1)[-1]


def program(layers=LAYERS):
    return ["embed", *(f"layers.{n}.{kind}" for n in range(layers) for kind in LAYER), "final_norm", "logits"]


def parents(tap, layers=LAYERS):
    """The taps that this one is computed from."""
    if not tap.startswith("layers."):
        return {"embed": ["token_ids"], "logits": ["final_norm"], "final_norm": [f"layers.{layers - 1}.out"]}[tap]
    _, layer, kind = tap.split(".")
    before = "embed" if layer == "0" else f"layers.{int(layer) - 1}.out"
    return [before if source == "in" else f"layers.{layer}.{source}" for source in LAYER[kind][1]]


def first_wrong(tap, recorded):
    """Where a bug at `tap` shows first, when only the taps are there that `recorded(tap)` allows."""
    changed = {tap}
    for later in program()[program().index(tap):]:
        if later == tap or changed & set(parents(later)):
            changed.add(later)
            if recorded(later):
                return later
    raise ValueError(f"nothing recorded shows {tap}")


def last_right(tap, recorded):
    """The last recorded tap, in program order, that `tap` is computed from through unrecorded ones only."""
    found, open_ends = set(), [tap]
    while open_ends:
        for source in parents(open_ends.pop()):
            if source == "token_ids" or recorded(source):
                found.add(source)
            else:
                open_ends.append(source)
    return max(found, key=["token_ids", *program()].index)
