"""Computes every tap of a transformers step from the taps before it, with the model's own submodules called by hand."""

import inspect
import sys

import torch

LAYER_TAPS = ["attn_norm", "q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "k_cache", "v_cache", "attn_heads",
              "attn_out", "attn_resid", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "mlp_out", "out"]


def expected_taps(model, eager, attention=True):
    config = model.config
    layer = list(LAYER_TAPS)
    if config.model_type == "qwen3":
        layer += ["q_norm", "k_norm"]
    if eager:
        layer += ["attn_scores", "attn_probs"]
    if not attention:
        layer = [tap for tap in layer if tap not in ("q_rope", "k_rope", "k_cache", "v_cache", "attn_scores", "attn_probs")]
    taps = {f"layers.{n}.{tap}" for n in range(config.num_hidden_layers) for tap in layer}
    return taps | {"embed", "final_norm", "logits"}


class Replay:
    """Goes through one sequence's steps; keeps the keys and values of the steps before."""

    def __init__(self, model, cache_length=None):
        self.model = model
        self.cache_length = cache_length  # of a static cache: attention then runs over all of it
        self.past = {}

    @torch.no_grad()
    def check(self, step):
        model, config = self.model, self.model.config
        heads, kv, size = config.num_attention_heads, config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
        ids, positions = step["token_ids"], step["positions"]
        rows = len(ids)
        same = self._same
        embed = model.model.embed_tokens(ids[None])
        same(step, "embed", embed[0])
        cos, sin = model.model.rotary_emb(embed, positions[None])
        rotate = sys.modules[type(model).__module__].apply_rotary_pos_emb
        residual = step["embed"]
        for n, layer in enumerate(model.model.layers):
            at = f"layers.{n}."
            attn, mlp = layer.self_attn, layer.mlp
            get = lambda tap: step[at + tap][None]
            same(step, at + "attn_norm", layer.input_layernorm(residual[None])[0])
            for tap in ("q_proj", "k_proj", "v_proj"):
                same(step, at + tap, getattr(attn, tap)(get("attn_norm"))[0])
            q, k = (get(tap).view(1, rows, -1, size) for tap in ("q_proj", "k_proj"))
            if hasattr(attn, "q_norm"):
                same(step, at + "q_norm", attn.q_norm(q)[0])
                same(step, at + "k_norm", attn.k_norm(k)[0])
                q, k = get("q_norm"), get("k_norm")
            q, k = rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
            same(step, at + "q_rope", q[0].transpose(0, 1))
            same(step, at + "k_rope", k[0].transpose(0, 1))
            for tap, new in (("k_cache", step[at + "k_rope"]), ("v_cache", step[at + "v_proj"].view(rows, kv, size))):
                self.past[at + tap] = torch.cat([self.past[at + tap], new]) if at + tap in self.past else new
                same(step, at + tap, self.past[at + tap])
            if at + "attn_probs" in step:
                self._attention(step, at, heads // kv, attn.scaling)
            same(step, at + "attn_out", attn.o_proj(get("attn_heads").reshape(1, rows, heads * size))[0])
            same(step, at + "attn_resid", residual + step[at + "attn_out"])
            same(step, at + "mlp_norm", layer.post_attention_layernorm(get("attn_resid"))[0])
            same(step, at + "gate_proj", mlp.gate_proj(get("mlp_norm"))[0])
            same(step, at + "up_proj", mlp.up_proj(get("mlp_norm"))[0])
            same(step, at + "mlp_act", mlp.act_fn(step[at + "gate_proj"]) * step[at + "up_proj"])
            same(step, at + "mlp_out", mlp.down_proj(get("mlp_act"))[0])
            same(step, at + "out", step[at + "attn_resid"] + step[at + "mlp_out"])
            residual = step[at + "out"]
        same(step, "final_norm", model.model.norm(residual[None])[0])
        kept = step["logits"].shape[0]
        same(step, "logits", model.lm_head(step["final_norm"][None, -kept:])[0])

    def _attention(self, step, at, groups, scaling):
        """Over as many keys as the engine's cache is long, so that the sums have the engine's shape."""
        q, k, v = (step[at + tap] for tap in ("q_rope", "k_cache", "v_cache"))
        visible = k.shape[0]
        length = self.cache_length or visible
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, length - visible)) for x in (k, v))
        k, v = (x.transpose(0, 1).repeat_interleave(groups, 0)[None] for x in (k, v))
        scores = torch.matmul(q.transpose(0, 1)[None], k.transpose(2, 3)) * scaling
        self._same(step, at + "attn_scores", scores[0, :, :, :visible])
        hidden = torch.arange(length)[None] > torch.arange(visible - len(q), visible)[:, None]
        mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, torch.finfo(q.dtype).min)
        probs = torch.softmax(scores + mask, -1, dtype=torch.float32).to(q.dtype)
        self._same(step, at + "attn_probs", probs[0, :, :, :visible])
        self._same(step, at + "attn_heads", torch.matmul(probs, v)[0].transpose(0, 1))

    @staticmethod
    def _same(step, tap, value):
        held = step[tap]
        assert held.shape == value.shape, f"{tap}: shape {tuple(held.shape)}, by hand {tuple(value.shape)}"
        assert held.dtype == value.dtype, f"{tap}: {held.dtype}, by hand {value.dtype}"
        assert torch.equal(held, value), f"{tap}: differs from the value by hand by {(held - value).abs().max()}"


def cached(model, cache):
    """The keyword by which this transformers takes a cache: it was renamed in 5.24."""
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def cache_of(output):
    return output["cache" if "cache" in output.keys() else "past_key_values"]


def make(family, attention="eager", dtype=torch.float32, **more):
    import transformers

    config = dict(vocab_size=80, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=79,
                  pad_token_id=None, rope_theta=100000.0)
    config.update({"llama": dict(attention_bias=True, mlp_bias=True), "qwen2": {}, "qwen3": dict(head_dim=16)}[family])
    config.update(more)
    prefix = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    torch.manual_seed(0)
    model = getattr(transformers, prefix + "ForCausalLM")._from_config(
        getattr(transformers, prefix + "Config")(**config), attn_implementation=attention
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # every parameter random, biases and norms too: a tap taken at the wrong place must differ
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * (1.2 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.3))
    return model.to(dtype).eval()


def state_of(model):
    """All that a recorder touches on a model and on transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    hooks = [(name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
             for name, m in model.named_modules()]
    return (model.config._attn_implementation, hooks, dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
            dict(type(ALL_ATTENTION_FUNCTIONS)._global_mapping), "generate" in vars(model),
            sys.modules[type(model).__module__].eager_attention_forward)
