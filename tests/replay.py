"""Every operation of a recorded trace, replayed in float64 from the trace's own values: an independent judge.

It knows the model as transformers configures it and nothing of firstdiff, and serves to show that a planted bug is
wrong first where these tests say it is. Eager and sdpa, default and llama3 rotation, with all taps recorded.
"""

import torch
from firstdiff_binary import read_steps
from planted import LAYER, LAYERS
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import rotate_half


def local_errors(trace, model):
    """(step, tap) -> relative error of what the engine holds against float64 from the engine's own inputs, in order.

    `model` is the right one, in float64.
    """
    past, errors = {}, {}
    for number, step in enumerate(read_steps(trace)):
        values = {name: value.double() if value.is_floating_point() else value for name, value in step.items()}
        for tap, expected in replayed(values, model, past):
            held = values[tap].reshape(expected.shape)
            errors[number, tap] = float((held - expected).norm() / expected.norm())
    return errors


def replayed(values, model, past):
    ids, positions = values["token_ids"], values["positions"]
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = model.model.layers[0].self_attn.head_dim
    tokens, groups = ids.numel(), heads // kv_heads
    # the angles in float32, as the model defines them; everything after in float64
    angles = positions[:, None].float() * model.model.rotary_emb.inv_freq.float()
    cos, sin = (torch.cat((f(angles), f(angles)), -1).double()[:, None] for f in (torch.cos, torch.sin))
    rms = lambda module, x: module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    turn = lambda x: x * cos + rotate_half(x) * sin
    stream = values["embed"]
    yield "embed", model.model.embed_tokens.weight[ids]
    for n, layer in enumerate(model.model.layers[:LAYERS]):
        at, attn, mlp = f"layers.{n}.", layer.self_attn, layer.mlp
        get = lambda kind: values[at + kind]
        before = past.get(n, (torch.zeros(0, kv_heads, dim, dtype=torch.float64),) * 2)
        visible = before[0].shape[0] + tokens
        q, k = get("q_proj").view(tokens, heads, dim), get("k_proj").view(tokens, kv_heads, dim)
        v = get("v_proj").view(tokens, kv_heads, dim)
        normed = at + "q_norm" in values
        keys = torch.cat((before[0], get("k_rope")))
        past[n] = keys, torch.cat((before[1], v))
        # a window's cache holds the last keys; where it is not recorded, what was stored stands in for it
        read = lambda kind: values.get(at + kind, past[n][kind == "v_cache"]).repeat_interleave(groups, 1)
        scores = torch.einsum("thd,khd->htk", get("q_rope"), read("k_cache")) * attn.scaling
        held = get("attn_scores") if at + "attn_scores" in values else scores
        query, key = torch.arange(visible - tokens, visible)[:, None], torch.arange(visible)[-held.shape[-1] :]
        allowed = key <= query
        if getattr(attn, "sliding_window", None):
            allowed &= key > query - attn.sliding_window
        probs = held.masked_fill(~allowed, -torch.inf).softmax(-1)
        used = get("attn_probs") if at + "attn_probs" in values else probs
        replay = {
            "attn_norm": lambda: rms(layer.input_layernorm, stream),
            "q_proj": lambda: attn.q_proj(get("attn_norm")),
            "k_proj": lambda: attn.k_proj(get("attn_norm")),
            "v_proj": lambda: attn.v_proj(get("attn_norm")),
            "q_norm": lambda: rms(attn.q_norm, q),
            "k_norm": lambda: rms(attn.k_norm, k),
            "q_rope": lambda: turn(get("q_norm") if normed else q),
            "k_rope": lambda: turn(get("k_norm") if normed else k),
            "k_cache": lambda: keys[-len(get("k_cache")) :],
            "v_cache": lambda: past[n][1][-len(get("v_cache")) :],
            "attn_scores": lambda: scores,
            "attn_probs": lambda: probs,
            "attn_heads": lambda: torch.einsum("htk,khd->thd", used, read("v_cache")),
            "attn_out": lambda: attn.o_proj(get("attn_heads").flatten(1)),
            "attn_resid": lambda: stream + get("attn_out"),
            "mlp_norm": lambda: rms(layer.post_attention_layernorm, get("attn_resid")),
            "gate_proj": lambda: mlp.gate_proj(get("mlp_norm")),
            "up_proj": lambda: mlp.up_proj(get("mlp_norm")),
            "mlp_act": lambda: silu(get("gate_proj")) * get("up_proj"),
            "mlp_out": lambda: mlp.down_proj(get("mlp_act")),
            "out": lambda: get("attn_resid") + get("mlp_out"),
        }
        for kind in LAYER:
            if at + kind in values:
                yield at + kind, replay[kind]()
        stream = get("out")
    yield "final_norm", rms(model.model.norm, stream)
    yield "logits", model.lm_head(values["final_norm"])
