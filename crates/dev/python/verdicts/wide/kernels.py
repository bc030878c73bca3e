"""The forward pass of crates/dev/python/engine with `way.Way`'s choices. Values are float32; `at` alone rounds results."""

import torch
from engine.arithmetic import Arithmetic
from engine.engine import Engine

from .way import DTYPES, rounded

ROW_PARALLEL = ("o_proj", "down_proj")
UNQUANTISED = ("lm_head", "router")
STREAM_NORMS = ("attn_norm", "mlp_norm", "final_norm")
MASKED = -1e30


class Kernels(Engine):
    """One sequence. `ring` is a cache of so many slots that keeps its first keys: (slots, kept)."""

    def __init__(self, config, weights, way, taps=None, capacity=64, planted=None, ring=None):
        kept = torch.float32 if way.weight_format == "file" else DTYPES[way.weight_format]
        super().__init__(config, weights, Arithmetic("", torch.float32, torch.float32, kept), taps, capacity)
        self.way, self.planted, self.ring = way, planted, ring
        self.stream = None  # the last addition, before it was rounded

    # ---- one place that rounds ----------------------------------------------------------------------------------

    def at(self, tap, x):
        """The value of a tap: changed by a planted fault, rounded, recorded; and as its readers see it."""
        name = tap if self.layer is None else f"layers.{self.layer}.{tap}"
        if not x.is_floating_point():
            self.keep(tap, name, x)
            return x
        format = self.way.format(tap)
        if self.planted is not None:
            x = self.planted.apply(self, tap, name, x, lambda x: self.round(tap, x, format))
        held = self.round(tap, x, format)
        self.keep(tap, name, held.to(DTYPES[self.way.recorded or format]))
        if tap in ("attn_resid", "out", "embed"):
            self.stream = x
        return x if tap in self.way.unread else held

    def round(self, tap, x, format):
        """Caches hold what they hold; everything else is rounded here."""
        return x if tap in ("k_cache", "v_cache") else rounded(x, format)

    def keep(self, tap, name, x):
        if self.way.shows(tap) and self.wants(name):
            self.taps[name] = x.detach().clone()

    def inner(self, x):
        """A value that an operation stores on its way."""
        return rounded(x, self.way.store)

    # ---- rows ---------------------------------------------------------------------------------------------------

    def embed(self, ids):
        return self.weight("embed.weight")[torch.as_tensor(ids)] * self.embed_scale()

    def logits(self, x):
        cap = self.config.logit_cap
        if cap is None:
            return x
        x = self.at("logits_raw", x)
        return self.inner(torch.tanh(self.inner(x / cap))) * cap

    def norm_formula(self, x, weight, eps, name):
        if self.way.reads_sum and name in STREAM_NORMS:
            x = self.stream
        mean = x.pow(2).mean(-1, keepdim=True) + eps
        if self.config.gemma:
            return x * torch.rsqrt(mean) * (1 + weight)
        match self.way.norm:
            case "before":
                return x * torch.rsqrt(mean) * weight
            case "root":
                return self.inner(x / self.inner(mean.sqrt())) * weight
            case "reciprocal":
                return self.inner(x * self.inner(torch.rsqrt(mean))) * weight
            case _:
                return self.inner(x * torch.rsqrt(mean)) * weight

    def linear(self, x, module):
        return self.product(x, self.weight(f"{module}.weight"), module, self.bias(module))

    def product(self, x, weight, module, bias=None):
        way = self.way
        if way.all_inputs is not None:
            x, weight = way.all_inputs(x), way.all_inputs(weight)
        if way.inputs is not None and module not in UNQUANTISED:
            x = way.inputs(x)
        if way.ranks > 1 and module in ROW_PARALLEL:
            return self.reduced(self.shares(x, weight, way.ranks), bias)
        if way.splits > 1:
            return self.added(self.shares(x, weight, way.splits), bias)
        y = self.summed(x, weight) if way.sums and module != "router" else x @ weight.T
        return y if bias is None else y + bias

    def shares(self, x, weight, count):
        """The product over each of `count` parts of the inner axis."""
        width = -(-x.shape[-1] // count)
        return [x[..., n : n + width] @ weight[:, n : n + width].T for n in range(0, x.shape[-1], width)]

    def reduced(self, shares, bias=None):
        """Ranks' parts, each stored, added up; the first rank adds the bias."""
        if bias is not None:
            shares = [shares[0] + bias, *shares[1:]]
        parts = [self.inner(share) for share in shares]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
            total = self.inner(total) if self.way.reduce == "hop" else total
        return total

    def added(self, shares, bias):
        total = 0
        for share in shares:
            total = self.inner(total + self.inner(share)) if self.way.splits_rounded else total + share
        return total if bias is None else total + bias

    def summed(self, x, weight):
        """One product after another, every partial sum rounded."""
        total = torch.zeros(x.shape[0], weight.shape[0])
        for n in range(x.shape[-1]):
            term = rounded(x[:, n : n + 1] * weight[:, n], self.way.sums)
            total = rounded(total + term, self.way.sums)
        return total

    def add(self, x, y, name):
        return x + y

    def gated(self, gate, up):
        if self.config.act == "gelu_pytorch_tanh":
            acted = torch.nn.functional.gelu(gate, approximate="tanh")
        else:
            acted = torch.nn.functional.silu(gate)
        return (acted if self.way.fused_activation else self.inner(acted)) * up

    # ---- experts ------------------------------------------------------------------------------------------------

    def mixture(self, h):
        logits = self.at("router_logits", self.linear(h, "router"))
        scores = self.at("router_scores", torch.softmax(logits, -1))
        chosen = self.at("router_topk", self.choose(scores).int())
        weights = self.at("router_weights", self.counted(logits, scores, chosen))
        way = self.way
        totals = [torch.zeros_like(h) for _ in range(way.ranks)]
        for number in range(self.config.moe["experts"]):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            if not len(rows):
                continue
            for rank, part in enumerate(self.expert_parts(h[rows], number)):
                if way.fused_experts:
                    totals[rank][rows] += part * weights[rows, places, None]
                else:
                    part = self.inner(self.inner(part) * weights[rows, places, None])
                    totals[rank][rows] = self.inner(totals[rank][rows] + part)
        return self.at("experts_out", totals[0] if way.ranks == 1 else self.reduced(totals))

    def counted(self, logits, scores, chosen):
        if self.way.router == "chosen" and self.config.moe["normalise"]:
            return torch.softmax(logits.gather(-1, chosen.long()), -1)
        best = scores.gather(-1, chosen.long())
        return best / best.sum(-1, keepdim=True) if self.config.moe["normalise"] else best

    def expert_parts(self, x, number):
        """The expert's result, or each rank's share of it."""
        gate = self.inner(self.linear(x, f"expert-{number}-gate_proj"))
        up = self.inner(self.linear(x, f"expert-{number}-up_proj"))
        inner = self.inner(self.gated(gate, up))
        down = f"expert-{number}-down_proj"
        if self.way.ranks > 1:
            return self.shares(inner, self.weight(f"{down}.weight"), self.way.ranks)
        return [self.linear(inner, down)]

    # ---- attention ----------------------------------------------------------------------------------------------

    def cos_sin(self, positions):
        frequency, amplitude = self.frequencies()
        angle = positions.float()[:, None] * frequency
        cos, sin = angle.cos() * amplitude, angle.sin() * amplitude
        return (cos, sin) if self.way.rotation == "f32" else (self.inner(cos), self.inner(sin))

    def rotate(self, x, cos, sin, which):
        cos, sin = cos.repeat(1, 2)[:, None], sin.repeat(1, 2)[:, None]
        a, b = x.chunk(2, -1)
        turned = torch.cat([-b, a], -1)
        step = self.inner if self.way.rotation == "eager" else lambda x: x
        return step(x * cos) + step(turned * sin)

    def cache_write(self, k, v):
        held = self.way.cache.held if self.way.cache is not None else lambda x, _: self.inner(x)
        self.keys[self.layer, self.slots()] = held(k, "k")
        self.values[self.layer, self.slots()] = held(v, "v")

    def key_positions(self, layer=None):
        """Positions of the keys that the cache of a layer holds in this call, in its own order."""
        end, rows = self.length + len(self.ids), len(self.ids)
        window = self.config.windows[self.layer if layer is None else layer]
        if self.ring is None:
            return torch.arange(end)
        slots, kept = self.ring if window is None else (window, 0)
        if end <= slots:
            return torch.arange(end)
        if rows > 1:
            assert window is not None, "a prompt longer than the ring"
            return torch.arange(max(0, end - rows - window + 1), end)
        slot = torch.arange(slots - kept)
        turns = (end - 1 - kept - slot) // (slots - kept)
        return torch.cat([torch.arange(kept), kept + slot + turns * (slots - kept)])

    def cache_read(self):
        held = self.key_positions()
        return self.keys[self.layer, held].clone(), self.values[self.layer, held].clone()

    def visible(self, keys):
        row, key = self.positions[:, None], self.key_positions()[None]
        window = self.config.windows[self.layer]
        seen = key <= row
        return seen if window is None else seen & (key > row - window)

    def short(self, x):
        return x if self.way.all_inputs is None else self.way.all_inputs(x)

    def dots(self, q, keys):
        return torch.einsum("thd,khd->htk", self.short(q), self.short(keys[:, self.kv_head_of()]))

    def attention(self, q, keys, values):
        way = self.way
        if way.attention in ("flash", "split"):
            online = self.flash if way.attention == "flash" else self.split
            return self.at("attn_heads", online(q, keys, values))
        if way.attention == "scaled-first":
            scores = self.dots(self.inner(q * self.attention_scale()), keys)
        else:
            scores = rounded(self.dots(q, keys), way.format("attn_scores")) * self.attention_scale()
        scores = self.at("attn_scores", scores)
        probs = torch.softmax(scores.masked_fill(~self.visible(keys.shape[0]), float("-inf")), -1)
        probs = self.at("attn_probs", probs)
        return self.at("attn_heads", self.weigh(probs, values))

    def weigh(self, probs, values):
        return torch.einsum("htk,khd->thd", self.short(probs), self.short(values[:, self.kv_head_of()]))

    def partial(self, q, keys, values, seen):
        """Largest score, sum of weights and weighted values over some keys; weights rounded, as tensor cores take them."""
        scores = (self.dots(q, keys) * self.attention_scale()).masked_fill(~seen, MASKED)
        top = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - top).masked_fill(~seen, 0.0)
        return top, weights.sum(-1, keepdim=True), self.weigh(self.inner(weights), values).transpose(0, 1)

    def flash(self, q, keys, values):
        """Online softmax over blocks of keys, one division at the end."""
        seen = self.visible(keys.shape[0])
        top = torch.full((q.shape[1], q.shape[0], 1), MASKED)
        total, out = torch.zeros_like(top), torch.zeros(q.shape[1], q.shape[0], q.shape[2])
        for start in range(0, keys.shape[0], self.way.block):
            part = slice(start, start + self.way.block)
            scores = (self.dots(q, keys[part]) * self.attention_scale()).masked_fill(~seen[:, part], MASKED)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights = torch.exp(scores - higher).masked_fill(~seen[:, part], 0.0)
            fade = torch.exp(top - higher)
            total = total * fade + weights.sum(-1, keepdim=True)
            out = out * fade + self.weigh(self.inner(weights), values[part]).transpose(0, 1)
            top = higher
        return (out / total).transpose(0, 1)

    def split(self, q, keys, values):
        """Flash-decoding: each split of the keys normalises by its own sum; the results are merged by their sums."""
        seen, width = self.visible(keys.shape[0]), -(-keys.shape[0] // self.way.parts)
        tops, sums, outs = [], [], []
        for start in range(0, keys.shape[0], width):
            part = slice(start, start + width)
            top, total, out = self.partial(q, keys[part], values[part], seen[:, part])
            out = out / total.clamp(min=1e-30)
            tops.append(top), sums.append(total), outs.append(self.inner(out) if self.way.parts_rounded else out)
        top = torch.stack(tops).amax(0)
        counts = [torch.exp(one - top) * total for one, total in zip(tops, sums)]
        merged = sum(count * out for count, out in zip(counts, outs)) / sum(counts)
        return merged.transpose(0, 1)
