"""The forward pass of llama, qwen2, qwen3, qwen3_moe, gemma3_text and MiniMind-2, one sequence at a time, with every operation a method.

The methods in `OPERATIONS` are what a fault may replace (see `fault.py`). They call one another through `self`, so a
replaced one is used everywhere. Values are torch tensors in the arithmetic's storage format; every operation computes in
float32 and rounds its result once, or where transformers rounds in between. Rows come first: [T, ...]. Nothing here is
taken from firstdiff's own code: this is the other side of the comparison.
"""

import torch

from . import frequencies
from .arithmetic import through_q8

# what may be replaced, in the order of the forward pass
OPERATIONS = (
    "forward", "rope_positions", "weight", "load_weight", "bias", "embed", "block", "attention_block", "mlp_block",
    "rms_norm", "norm_eps", "norm_formula", "linear", "product", "project_qkv", "split_heads", "head_norm",
    "rotate_all", "frequencies", "cos_sin", "rotate", "slots", "cache_write", "cache_read", "attention", "kv_head_of",
    "attention_scale", "scores", "visible", "softmax", "weigh_values", "add", "activation", "gated", "at",
    "embed_scale", "post_norm", "router_scores", "choose", "router_weights", "expert", "weigh_expert", "with_shared", "logits",
)  # fmt: skip


class Engine:
    """One model in one arithmetic, with its cache. A new sequence needs a new engine."""

    def __init__(self, config, weights, arithmetic, taps=None, capacity=64):
        self.config, self.weights, self.arithmetic = config, weights, arithmetic
        self.wants = taps or (lambda tap: True)
        self.layer = None  # the layer that runs now, None outside the layers
        self.length = 0  # tokens in the cache
        self.call = 0  # forward calls so far: 0 is the first prefill
        self.ids = None  # of this call
        self.positions = None  # of this call's rows
        self.history = []  # every token so far
        self.taps = {}
        self._loaded = {}
        self.pad = 0  # padding tokens to the left of this sequence in its batch
        self.batch = [self]  # engines of the sequences that run together, this one's own included
        shape = (config.layers, capacity, config.kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=arithmetic.cache)
        self.values = torch.zeros(shape, dtype=arithmetic.cache)

    # ---- one call ---------------------------------------------------------------------------------------------

    def run(self, ids):
        """Feeds tokens; returns (logits [T, V], recorded taps)."""
        self.ids = list(ids)
        self.positions = torch.arange(self.length, self.length + len(ids))
        self.history += self.ids
        self.taps = {}
        logits = self.forward(self.ids)
        self.length += len(ids)
        self.call += 1
        return logits, self.taps

    def at(self, tap, x):
        """A named value exists: it is recorded as it is now. Faults replace it here, before it is recorded."""
        name = tap if self.layer is None else f"layers.{self.layer}.{tap}"
        if self.wants(name):
            self.taps[name] = x.detach().clone()
        return x

    def forward(self, ids):
        self.layer = None
        x = self.at("embed", self.embed(ids))
        for self.layer in range(self.config.layers):
            x = self.block(x)
        self.layer = None
        x = self.at("final_norm", self.rms_norm(x, "final_norm"))
        return self.at("logits", self.logits(self.linear(x, "lm_head")))

    def logits(self, x):
        """Bounded, where the model has a bound; quotient and tangent are rounded, as transformers does."""
        cap = self.config.logit_cap
        if cap is None:
            return x
        self.at("logits_raw", x)
        return self.store(self.store(torch.tanh(self.store(x.float() / cap).float())).float() * cap)

    def block(self, x):
        x = self.attention_block(x)
        return self.mlp_block(x)

    def attention_block(self, x):
        h = self.at("attn_norm", self.rms_norm(x, "attn_norm"))
        q, k, v = self.project_qkv(h)
        if self.config.head_norms:
            q = self.at("q_norm", self.head_norm(q, "q_norm"))
            k = self.at("k_norm", self.head_norm(k, "k_norm"))
        q, k = self.rotate_all(q, k)
        self.cache_write(k, v)
        keys, values = self.cache_read()
        keys, values = self.at("k_cache", keys), self.at("v_cache", values)
        heads = self.attention(q, keys, values)
        out = self.at("attn_out", self.linear(heads.flatten(1), "o_proj"))
        if self.config.gemma:
            out = self.at("attn_post_norm", self.post_norm(out, "attn_post_norm"))
        return self.at("attn_resid", self.add(x, out, "attn_resid"))

    def mlp_block(self, x):
        h = self.at("mlp_norm", self.rms_norm(x, "mlp_norm"))
        if self.config.moe and self.layer in self.config.moe["layers"]:
            return self.at("out", self.add(x, self.mixture(h), "out"))
        gate = self.at("gate_proj", self.linear(h, "gate_proj"))
        up = self.at("up_proj", self.linear(h, "up_proj"))
        inner = self.at("mlp_act", self.gated(gate, up))
        out = self.at("mlp_out", self.linear(inner, "down_proj"))
        if self.config.gemma:
            out = self.at("mlp_post_norm", self.post_norm(out, "mlp_post_norm"))
        return self.at("out", self.add(x, out, "out"))

    def post_norm(self, x, name):
        """A branch's norm before it is added."""
        return self.rms_norm(x, name)

    # ---- experts ----------------------------------------------------------------------------------------------

    def mixture(self, h):
        logits = self.at("router_logits", self.linear(h, "router"))
        scores = self.router_scores(logits)
        chosen = self.at("router_topk", self.choose(scores).int())
        weights = self.at("router_weights", self.router_weights(scores, chosen))
        total = torch.zeros_like(h)
        for number in range(self.config.moe["experts"]):
            for row, place in (chosen == number).nonzero().tolist():
                y = self.weigh_expert(self.expert(h[row : row + 1], number), weights[row, place])
                total[row : row + 1] = self.store(total[row : row + 1].float() + y.float())
        total = self.at("experts_out", total)
        return self.at("mlp_out", self.with_shared(total, self.shared(h))) if self.config.moe["shared"] else total

    def shared(self, h):
        """The expert that every token goes through."""
        gate = self.at("shared_gate_proj", self.linear(h, "shared_gate_proj"))
        up = self.at("shared_up_proj", self.linear(h, "shared_up_proj"))
        return self.at("shared_out", self.linear(self.at("shared_act", self.gated(gate, up)), "shared_down_proj"))

    def with_shared(self, chosen, shared):
        return self.store(chosen.float() + shared.float())

    def router_scores(self, logits):
        """In float32, whatever results are stored in."""
        return torch.softmax(logits.float(), -1)

    def choose(self, scores):
        return scores.topk(self.config.moe["chosen"]).indices

    def router_weights(self, scores, chosen):
        best = scores.gather(-1, chosen.long())
        return self.store(best / best.sum(-1, keepdim=True) if self.config.moe["normalise"] else best)

    def expert(self, x, number):
        gate, up = self.linear(x, f"expert-{number}-gate_proj"), self.linear(x, f"expert-{number}-up_proj")
        return self.linear(self.gated(gate, up), f"expert-{number}-down_proj")

    def weigh_expert(self, y, weight):
        return self.store(y.float() * weight.float())

    # ---- weights ----------------------------------------------------------------------------------------------

    def full_name(self, name):
        return name if self.layer is None else f"layers.{self.layer}.{name}"

    def weight(self, name):
        """`q_proj.weight` of the layer that runs now, in float32 after rounding to the arithmetic's weight format."""
        name = self.full_name(name)
        if name not in self._loaded:
            self._loaded[name] = self.load_weight(name)
        return self._loaded[name]

    def load_weight(self, name):
        """By full name, such as `layers.0.q_proj.weight`."""
        if name == "lm_head.weight" and not self.weights.has(name):
            name = "embed.weight"
        return self.weights.read(name).to(self.arithmetic.weights).float()

    def bias(self, module):
        """The module's bias, or None where the family has none."""
        has = {"q_proj": self.config.qkv_bias, "k_proj": self.config.qkv_bias, "v_proj": self.config.qkv_bias,
               "o_proj": self.config.o_bias}.get(module, self.config.mlp_bias and module != "lm_head")  # fmt: skip
        return self.weight(f"{module}.bias") if has else None

    # ---- rows -------------------------------------------------------------------------------------------------

    def store(self, x):
        """Rounds a result to the format that operations' results are held in."""
        return x.to(self.arithmetic.store)

    def embed(self, ids):
        return self.store(self.weight("embed.weight")[torch.as_tensor(ids)] * self.embed_scale())

    def embed_scale(self):
        """Rounded to the format of the weights."""
        if not self.config.gemma:
            return 1.0
        return torch.tensor(self.config.hidden**0.5).to(self.arithmetic.weights).float()

    def rms_norm(self, x, name):
        return self.norm_formula(x, self.weight(f"{name}.weight"), self.norm_eps(name), name)

    def head_norm(self, x, name):
        """x [T, heads, D]: each head on its own."""
        return self.rms_norm(x, name)

    def norm_eps(self, name):
        return self.config.eps

    def norm_formula(self, x, weight, eps, name):
        x = x.float()
        if self.config.gemma:
            return self.store(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1 + weight))
        x = self.store(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
        return self.store(weight * x.float())

    def linear(self, x, module):
        y = self.product(x, self.weight(f"{module}.weight"), module)
        bias = self.bias(module)
        return self.store(y if bias is None else y + bias)

    def product(self, x, weight, module):
        """x [T, in] times weight [out, in], in float32 and not yet rounded."""
        return (through_q8(x) if self.arithmetic.quantised is not None else x.float()) @ weight.T

    def add(self, x, y, name):
        return self.store(x.float() + y.float())

    def activation(self, gate):
        if self.config.act == "gelu_pytorch_tanh":
            return self.store(torch.nn.functional.gelu(gate.float(), approximate="tanh"))
        return self.store(torch.nn.functional.silu(gate.float()))

    def gated(self, gate, up):
        return self.store(self.activation(gate).float() * up.float())

    # ---- attention --------------------------------------------------------------------------------------------

    def project_qkv(self, h):
        q = self.split_heads(self.at("q_proj", self.linear(h, "q_proj")), "q_proj")
        k = self.split_heads(self.at("k_proj", self.linear(h, "k_proj")), "k_proj")
        v = self.split_heads(self.at("v_proj", self.linear(h, "v_proj")), "v_proj")
        return q, k, v

    def split_heads(self, x, module):
        return x.unflatten(-1, (-1, self.config.head_dim))

    def rope_positions(self):
        """The position that each row of this call is rotated by."""
        return self.positions

    def rotate_all(self, q, k):
        cos, sin = self.cos_sin(self.rope_positions())
        return self.at("q_rope", self.rotate(q, cos, sin, "q")), self.at("k_rope", self.rotate(k, cos, sin, "k"))

    def frequencies(self):
        if self.config.gemma and self.config.windows[self.layer] is not None:
            return frequencies.plain(self.config.local_theta, self.config.head_dim), 1.0
        # one table for the whole batch, as long as its longest sequence
        return frequencies.frequencies(self.config, self.length + len(self.ids) + self.pad)

    def cos_sin(self, positions):
        """[T, D/2] each, in the storage format."""
        frequency, amplitude = self.frequencies()
        angle = positions.float()[:, None] * frequency
        return self.store(angle.cos() * amplitude), self.store(angle.sin() * amplitude)

    def rotate(self, x, cos, sin, which):
        """x [T, heads, D]; channel i goes with i + D/2. Both products are rounded, then the sum, as transformers does."""
        cos, sin = (self.store(t).float().repeat(1, 2)[:, None] for t in (cos, sin))
        a, b = x.float().chunk(2, -1)
        turned = torch.cat([-b, a], -1)
        return self.store(self.store(x.float() * cos).float() + self.store(turned * sin).float())

    def slots(self):
        """Where in the cache this call's rows are written."""
        return self.positions

    def cache_write(self, k, v):
        self.keys[self.layer, self.slots()] = k.to(self.arithmetic.cache)
        self.values[self.layer, self.slots()] = v.to(self.arithmetic.cache)

    def cache_read(self):
        """All keys and values visible to this call, [K, Hkv, D], oldest first."""
        end = self.length + len(self.ids)
        return self.keys[self.layer, :end].clone(), self.values[self.layer, :end].clone()

    def attention(self, q, keys, values):
        scores = self.at("attn_scores", self.scores(q, keys))
        probs = self.at("attn_probs", self.softmax(scores, self.visible(keys.shape[0])))
        return self.at("attn_heads", self.weigh_values(probs, values))

    def kv_head_of(self):
        """The key/value head that each query head reads, [H]."""
        return torch.arange(self.config.heads) // (self.config.heads // self.config.kv_heads)

    def attention_scale(self):
        return self.config.score_scale or self.config.head_dim**-0.5

    def scores(self, q, keys):
        """[H, T, K], scaled, not masked."""
        q = q.to(self.arithmetic.attention_inputs).float()
        keys = keys.float()[:, self.kv_head_of()]
        return self.store(self.store(torch.einsum("thd,khd->htk", q, keys)).float() * self.attention_scale())

    def visible(self, keys):
        """[T, K]: which of so many keys each row may see; key j is at position j."""
        row, key = self.positions[:, None], torch.arange(keys)[None]
        window = self.config.windows[self.layer]
        seen = key <= row
        return seen if window is None else seen & (key > row - window)

    def softmax(self, scores, visible):
        return self.store(torch.softmax(scores.float().masked_fill(~visible, float("-inf")), -1))

    def weigh_values(self, probs, values):
        """[T, H, D]"""
        probs = probs.to(self.arithmetic.attention_inputs).float()
        return self.store(torch.einsum("htk,khd->thd", probs, values.float()[:, self.kv_head_of()]))
