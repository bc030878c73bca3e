"""Attempts with faults planted in transformers' DeepSeek-V4, which shares nothing with the hypotheses either.

`tests/planted_v4.py` says what each fault is; the models are the tests' without their last layers and half of their experts.
"""

import json
from dataclasses import replace
from functools import lru_cache

import tiny_v4
import torch
from cases.attempt import Attempt
from engine.models import CACHE
from planted_v4 import BUGS, record
from tiny import prompt_ids, save_weights

LAYERS = 3  # one of each kind
PROMPT, STEPS = 20, 2
SMALL = {"num_hidden_layers": LAYERS, "layer_types": tiny_v4.LAYERS[:LAYERS], "n_routed_experts": 4,
         "mlp_layer_types": tiny_v4.BY_TYPES["mlp_layer_types"][:LAYERS]}  # fmt: skip
# Taps of one stage of a layer, after those that it starts from.
STAGES = (
    ("hc_attn_norm", "hc_attn_proj", "hc_attn_pre", "hc_attn_post", "hc_attn_mix", "hc_attn_in"),
    ("hc_attn_in", "attn_norm", "q_a_proj", "q_a_norm", "q_proj", "q_norm", "q_rope", "kv_proj", "kv_norm", "kv_rope"),
    ("attn_norm", "comp_kv", "comp_gate", "comp_pool", "comp_norm", "kv_entry", "kv_entries"),
    ("attn_norm", "q_a_norm", "index_kv", "index_gate", "index_pool", "index_norm", "index_entry", "index_entries",
     "index_q_proj", "index_q", "index_weights", "index_scores", "index_topk"),
    ("q_rope", "kv_rope", "kv_cache", "kv_entry", "kv_entries", "attn_keys", "index_entries", "index_scores", "index_topk",
     "visible_keys", "attn_scores", "attn_probs", "attn_heads", "attn_unrotated", "attn_groups", "attn_out"),
    ("hc_attn_post", "hc_attn_mix", "attn_out", "attn_resid"),
    ("attn_resid", "hc_ffn_norm", "hc_ffn_proj", "hc_ffn_pre", "hc_ffn_post", "hc_ffn_mix", "hc_ffn_in"),
    ("mlp_norm", "router_logits", "router_scores", "router_topk", "router_weights", "experts_out", "shared_gate_proj",
     "shared_up_proj", "shared_act", "shared_out", "mlp_out"),
)  # fmt: skip
ENDS = ("hc_head_norm", "hc_head_proj", "hc_head_pre", "hc_head", "final_norm")


def attempts():
    """(class, attempt); a fault that is faint in the first layer is sought in a later one."""
    for bug in BUGS:
        layers = [layer for layer in bug.layers if layer < LAYERS]
        for arithmetic in ("bf16", "f32"):
            for layer in layers or [None]:
                yield bug.cause, attempt(bug, arithmetic, layer)


def attempt(bug, arithmetic, layer):
    if layer is None:
        taps = [f"layers.{LAYERS - 1}.out", *ENDS]
    else:
        # A faint one may show in the layer's second half only.
        places = {bug.tap, *(bug.also if bug.faint else ())}
        kinds = {tap for stage in STAGES if places & {*stage} for tap in stage}
        start = "hc_streams" if layer == 0 else f"layers.{layer - 1}.out"
        taps = [start, *(f"layers.{layer}.{kind}" for kind in sorted(kinds))]

    def make(trace):
        folder, model = made(bug.model, arithmetic)
        record(model, trace, prompt_ids(PROMPT, seed=5), STEPS, bug, taps=taps, overwrite=True)
        return folder

    wrong = (bug.plant.__doc__ or bug.name.replace("_", " ")).strip().rstrip(".").removeprefix("Inside: ")
    return Attempt(bug.name, arithmetic, tuple(bug.taps(modules_only=False)), wrong, make)


@lru_cache(maxsize=None)
def made(name, arithmetic):
    """(folder, model in transformers): weights are numbers of bf16, whatever the engine computes in."""
    tiny = tiny_v4.BY_NAME[name]
    tiny = replace(tiny, name=f"{name}-small", config={**tiny.config, **SMALL})
    model = tiny_v4.load(tiny)
    for at, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and "inv_freq" not in at:
            value.data = value.data.bfloat16().float()
    folder = CACHE / tiny.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny.raw_config(), indent=1))
    tensors = tiny_v4.tensors_of(model, tiny.spelling)
    save_weights({n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}, folder)
    return folder, tiny_v4.to_dtype(model, torch.bfloat16) if arithmetic == "bf16" else model
