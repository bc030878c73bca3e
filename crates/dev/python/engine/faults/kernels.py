"""Attention as a kernel: tiles, partial results, memory past the end, layouts. What is inside one kernel is not recorded."""

import math

import torch

from ..fault import Fault
from .tools import FUSED, used_memory


class _Kernel(Fault):
    """`kernel(engine, scores [H, T, K], visible [T, K], values [K, H, D])` in float32 gives heads [T, H, D]."""

    first = ("attn_heads",)
    hides = FUSED

    def attention(self, engine, right, q, keys, values):
        scores, seen = engine.scores(q, keys).float(), engine.visible(keys.shape[0])
        heads = self.kernel(engine, scores, seen, values.float()[:, engine.kv_head_of()])
        return engine.at("attn_heads", engine.store(heads))


def _sum(weights, values):
    return torch.einsum("htk,khd->thd", weights, values)


class RescaleMissing(_Kernel):
    id = "softmax-online-rescale-missing"
    wrong = "running sums are not rescaled when the running maximum rises"

    def kernel(self, engine, scores, seen, values):
        scores = scores.masked_fill(~seen, -math.inf)
        weights = torch.exp(scores - scores.cummax(-1).values)
        return _sum(weights / weights.sum(-1, keepdim=True), values)


class RescaleMissingTiles(_Kernel):
    id = "softmax-online-rescale-missing"
    variant = "tiles"
    model = "qwen3"
    wrong = "running sums are not rescaled when a tile of 8 keys raises the maximum"

    def kernel(self, engine, scores, seen, values):
        scores = scores.masked_fill(~seen, -math.inf)
        running = scores.cummax(-1).values
        tile = torch.arange(scores.shape[-1]) // 8 * 8 + 7
        weights = torch.exp(scores - running[..., tile.clamp(max=scores.shape[-1] - 1)])
        return _sum(weights / weights.sum(-1, keepdim=True), values)


class _Split(_Kernel):
    """Keys in splits of 16, merged by the logarithms of their sums."""

    id = "attn-split-kv-merge"
    split = 16

    def kernel(self, engine, scores, seen, values):
        scores = scores.masked_fill(~seen, -math.inf)
        parts, sums = [], []
        for at in range(0, scores.shape[-1], self.split):
            part = scores[..., at : at + self.split]
            sums.append(part.logsumexp(-1))
            parts.append(_sum(torch.softmax(part, -1).nan_to_num(0), values[at : at + self.split]))
        weights = self.merge(torch.stack(sums))
        return sum(w.T[..., None] * part for w, part in zip(weights, parts))


class SplitBase(_Split):
    wrong = "splits of 16 keys merged with e^(sum in base 2) instead of 2^"

    def merge(self, sums):
        return torch.softmax(sums / math.log(2), 0)


class SplitEqual(_Split):
    variant = "equal"
    model = "qwen2"
    wrong = "splits of 16 keys averaged by the number of splits a row has"

    def merge(self, sums):
        some = sums.isfinite().float()
        return some / some.sum(0, keepdim=True)


class SplitHeads(_Split):
    variant = "heads"
    model = "qwen3"
    wrong = "splits of 16 keys merged with the weights of the mirrored head"

    def merge(self, sums):
        return torch.softmax(sums.flip(1), 0)


class TailPadding(_Kernel):
    id = "mask-tail-padding-attended"
    wrong = "keys that fill the last tile of 32 have score 0 and are not masked"

    def kernel(self, engine, scores, seen, values):
        keys = scores.shape[-1]
        scores = scores.masked_fill(~seen, -math.inf)
        scores = torch.nn.functional.pad(scores, (0, -keys % 32))
        return _sum(torch.softmax(scores, -1)[..., :keys], values)


class TailOutOfBounds(Fault):
    id = "attn-tail-oob-read"
    model, step = "qwen2", 1
    first, hides = ("attn_heads",), FUSED
    wrong = "in decode the last tile of 8 keys reads on into memory that an earlier request left"

    def begin(self, engine):
        used_memory(engine)

    def attention(self, engine, right, q, keys, values):
        if engine.call == 0:
            return right(q, keys, values)
        end = -(-len(keys) // 8) * 8
        keys, values = engine.keys[engine.layer, :end], engine.values[engine.layer, :end]
        probs = engine.softmax(engine.scores(q, keys), torch.ones(1, end, dtype=torch.bool))
        return engine.at("attn_heads", engine.weigh_values(probs, values))


class TailNextHead(TailOutOfBounds):
    variant = "head"
    model = "llama"
    wrong = "in decode the last tile of 16 keys reads on into the next head's keys and values, the last head's into zeros"

    def begin(self, engine):
        pass

    def attention(self, engine, right, q, keys, values):
        if engine.call == 0:
            return right(q, keys, values)
        count, (heads, size) = -(-len(keys) // 16) * 16, keys.shape[1:]

        def tiles(rows):
            memory = torch.cat([rows.transpose(0, 1).reshape(-1, size), rows.new_zeros(count, size)])
            return torch.stack([memory[head * len(rows) : head * len(rows) + count] for head in range(heads)], 1)

        probs = engine.softmax(engine.scores(q, tiles(keys)), torch.ones(1, count, dtype=torch.bool))
        return engine.at("attn_heads", engine.weigh_values(probs, tiles(values)))


class TileThreshold(_Kernel):
    id = "attn-decode-tile-threshold"
    step = 3
    wrong = "in decode only the first 26 keys are seen, what one partition holds"

    def kernel(self, engine, scores, seen, values):
        if engine.call > 0:
            seen[:, 26:] = False
        return _sum(torch.softmax(scores.masked_fill(~seen, -math.inf), -1), values)


class ReadsUnwritten(Fault):
    id = "attn-reads-unwritten-kv"
    chunk = 8
    first, hides = ("attn_heads",), (*FUSED, "k_cache", "v_cache")
    wrong = "the first chunk of 8 attends as if all 24 keys were written; the others are zero"

    def attention(self, engine, right, q, keys, values):
        if engine.call > 0:
            return right(q, keys, values)
        keys, values = engine.keys[engine.layer, : self.prompt], engine.values[engine.layer, : self.prompt]
        seen = torch.arange(self.prompt)[None] <= engine.positions[:, None] + self.prompt - len(engine.ids)
        return engine.at("attn_heads", engine.weigh_values(engine.softmax(engine.scores(q, keys), seen), values))


class _NotWritten(Fault):
    id = "attn-output-not-written"
    first = ("attn_heads",)

    def attention(self, engine, right, q, keys, values):
        tap, at = [], engine.at
        engine.at = lambda name, x: (tap.append(x), x)[1] if name == "attn_heads" else at(name, x)
        try:
            right(q, keys, values)
        finally:
            engine.at = at
        return at("attn_heads", self.leave(engine, tap[0]))


class OutputZero(_NotWritten):
    layers = (1,)
    wrong = "layer 1's attention output stays zero"

    def leave(self, engine, heads):
        return torch.zeros_like(heads) if engine.layer == 1 else heads


class OutputOfLayerBefore(_NotWritten):
    variant = "stale"
    model, layers = "qwen2", (2,)
    wrong = "layer 2's attention output is layer 1's"

    def leave(self, engine, heads):
        kept, self.before = getattr(self, "before", None), heads
        return kept if engine.layer == 2 else heads


class OutputOfStepBefore(_NotWritten):
    variant = "step"
    model, step, layers = "qwen3", 3, (0,)
    wrong = "at the third decoded token layer 0's attention output is the second's"

    def leave(self, engine, heads):
        if engine.layer == 0 and engine.call == 3:
            return self.before
        if engine.layer == 0:
            self.before = heads
        return heads


class OutputTailRows(_NotWritten):
    variant = "rows"
    wrong = "rows beyond the last whole tile of 16 stay zero"

    def leave(self, engine, heads):
        if len(heads) > 16:
            heads[len(heads) // 16 * 16 :] = 0
        return heads


class PartialQuery(Fault):
    id = "kernel-partial-vector-load"
    first = ("attn_scores",)
    parts = 1
    wrong = "of each query only the first channel is loaded: score = q[0] k[0]"

    def scores(self, engine, right, q, keys):
        q = q.clone()
        q[..., self.parts :] = 0
        return right(q, keys)


class PartialQueryFour(PartialQuery):
    variant = "four"
    model, parts = "qwen2", 4
    wrong = "of each query only the first four channels are loaded"


class PartialQueryFused(PartialQuery):
    variant = "fused"
    model = "qwen3"
    first, hides = ("attn_heads",), FUSED
    wrong = "of each query only the first channel is loaded, inside one kernel"


class StridesIgnored(Fault):
    id = "kernel-strides-ignored"
    first = ("attn_out",)
    wrong = "the output projection reads heads stored as [H, T, D] as if they were [T, H, D]"

    def linear(self, engine, right, x, module):
        if module == "o_proj":
            stored = x.unflatten(-1, (engine.config.heads, -1)).transpose(0, 1).contiguous()
            x = stored.view(x.shape)
        return right(x, module)


class StridesIgnoredQuery(Fault):
    id = "kernel-strides-ignored"
    variant = "scores"
    model, first = "qwen3", ("attn_scores",)
    wrong = "scores read queries stored as [T, H, D] as if they were [H, T, D]"

    def scores(self, engine, right, q, keys):
        tokens, heads, size = q.shape
        return right(q.contiguous().view(heads, tokens, size).transpose(0, 1), keys)


class StridesIgnoredWeight(Fault):
    id = "kernel-strides-ignored"
    variant = "weight"
    model, first = "qwen2", ("attn_out",)
    wrong = "the output projection's weight is used as stored where the product wants it transposed"

    def product(self, engine, right, x, weight, module):
        return right(x, weight.T.contiguous() if module == "o_proj" else weight, module)


class LayoutAlias(Fault):
    id = "kernel-layout-alias"
    first = ("attn_probs",)
    wrong = "softmax reads scores stored as [T, H, K] as if they were [H, T, K]"

    def softmax(self, engine, right, scores, visible):
        return right(scores.transpose(0, 1).contiguous().view(scores.shape), visible)


class Int32Offset(Fault):
    id = "kernel-int32-offset"
    first, layers = ("embed",), ()
    wrong = "rows of the embedding from id 64 on read as zero: their offset overflows"

    def embed(self, engine, right, ids):
        rows = right(ids)
        rows[torch.as_tensor(ids) >= 64] = 0
        return rows


class Int32OffsetLogits(Fault):
    id = "kernel-int32-offset"
    variant = "logits"
    model, first, layers = "qwen2", ("logits",), ()
    wrong = "logits from id 64 on are those of id - 64: their offset wraps"

    def linear(self, engine, right, x, module):
        y = right(x, module)
        return torch.cat([y[:, :64], y[:, : y.shape[1] - 64]], -1) if module == "lm_head" else y


class UninitialisedKv(_Kernel):
    id = "uninit-kv-nan-masked"
    model, prompt = "qwen2", 30
    wrong = "the last tile of 16 keys holds NaN past the end: probability 0 times NaN"

    def kernel(self, engine, scores, seen, values):
        keys = scores.shape[-1]
        probs = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
        return _sum(torch.nn.functional.pad(probs, (0, -keys % 16)),
                    torch.nn.functional.pad(values, (0, 0, 0, 0, 0, -keys % 16), value=math.nan))  # fmt: skip


class RaceInSharedMemory(_Kernel):
    """Which rows are hit differs from run to run."""

    id = "race-shared-memory"
    wrong = "a missing barrier: some rows' sums are normalised with the denominator of the row before"

    def kernel(self, engine, scores, seen, values):
        weights = torch.exp(scores.masked_fill(~seen, -math.inf))
        sums = weights.sum(-1, keepdim=True)
        lost = torch.from_numpy(_fresh().random(sums.shape) < 0.15)
        return _sum(weights / torch.where(lost, sums.roll(1, 0), sums), values)


def _fresh():
    import numpy as np

    return np.random.default_rng()
