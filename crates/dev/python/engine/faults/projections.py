"""Projections to q, k and v, their biases, and which head reads which."""

import torch

from ..fault import Fault

QKV = ("q_proj", "k_proj", "v_proj")


class _Bias(Fault):
    model = "qwen2"
    first = QKV
    modules = QKV
    times = 0

    def bias(self, engine, right, module):
        bias = right(module)
        return bias * self.times if module in self.modules else bias


class BiasMissing(_Bias):
    id = "qkv-bias-missing"
    wrong = "biases of q, k and v are zero"


class KeyBiasMissing(_Bias):
    id = "qkv-bias-missing"
    variant = "k"
    first = modules = ("k_proj",)
    wrong = "bias of k is zero"


class BiasMissingLlama(_Bias):
    id = "qkv-bias-missing"
    variant = "llama"
    model = "llama-biases"
    wrong = "biases of q, k and v are zero though attention_bias is true"


class BiasMissingInDecode(_Bias):
    id = "qkv-bias-missing"
    variant = "decode"
    step = 1
    wrong = "the decode path adds no bias"

    def bias(self, engine, right, module):
        return None if engine.call > 0 and module in QKV else right(module)


class BiasTwice(_Bias):
    id = "qkv-bias-added-twice"
    times = 2
    wrong = "biases of q, k and v added by both of two ranks"


class _FusedRows(Fault):
    """The three projections' rows in another order than they are read in."""

    first = QKV

    def order(self, engine):
        raise NotImplementedError

    def load_weight(self, engine, right, name):
        module = name.split(".")[-2]
        if module not in QKV:
            return right(name)
        stem, part = name.rsplit(".", 2)[0], name.rsplit(".", 1)[1]
        rows = torch.cat([right(f"{stem}.{each}.{part}") for each in QKV])[self.order(engine)]
        sizes = [engine.config.heads, engine.config.kv_heads, engine.config.kv_heads]
        return rows.split([n * engine.config.head_dim for n in sizes])[QKV.index(module)].clone()

    @staticmethod
    def rows(engine):
        """Row numbers of q [H, D], k and v [Hkv, D] in the concatenation."""
        heads, kv, size = engine.config.heads, engine.config.kv_heads, engine.config.head_dim
        return torch.arange((heads + 2 * kv) * size).view(-1, size).split([heads, kv, kv])


class FusedPerGroup(_FusedRows):
    id = "weight-fused-qkv-layout"
    model = "llama-8-heads"
    wrong = "fused rows lie per group, four times [q q k v], and are read as all q, all k, all v"

    def order(self, engine):
        q, k, v = self.rows(engine)
        groups = zip(q.chunk(len(k)), k.chunk(len(k)), v.chunk(len(k)))
        return torch.cat([part.flatten() for group in groups for part in group])


class FusedReadPerGroup(FusedPerGroup):
    id = "weight-fused-qkv-layout"
    variant = "read"
    model = "qwen3"
    wrong = "fused rows lie as all q, all k, all v and are read per group [q q k v] [q q k v]"

    def order(self, engine):
        return super().order(engine).argsort()


class FusedPerGroupQwen2(FusedPerGroup):
    variant = "qwen2"
    model = "qwen2"
    wrong = "fused rows and biases lie per group [q q k v] [q q k v] and are read as all q, all k, all v"


class TensorParallelOrder(_FusedRows):
    id = "tp-fused-qkv-order"
    model = "llama-8-heads"
    wrong = "gathered from two ranks as [q0 k0 v0 q1 k1 v1] and read as all q, all k, all v"

    def order(self, engine):
        ranks = zip(*(part.chunk(2) for part in self.rows(engine)))
        return torch.cat([part.flatten() for rank in ranks for part in rank])


class PermutedRows(Fault):
    id = "qk-weight-permutation"
    first = ("q_proj", "k_proj")
    wrong = "rows of q and k in llama.cpp's order, pairs side by side, for a rotation of halves"

    def load_weight(self, engine, right, name):
        rows = right(name)
        return self.change(rows, engine.config.head_dim) if name.split(".")[-2] in self.first else rows

    def change(self, rows, size):
        return rows.unflatten(0, (-1, 2, size // 2)).transpose(1, 2).reshape(rows.shape)


class PermutedBack(PermutedRows):
    variant = "undone"
    model = "qwen2"
    wrong = "rows of q and k put back from llama.cpp's order though they were never in it"

    def change(self, rows, size):
        return rows.unflatten(0, (-1, size // 2, 2)).transpose(1, 2).reshape(rows.shape)


class PermutedKeys(PermutedRows):
    variant = "k"
    first = ("k_proj",)
    wrong = "rows of k alone in llama.cpp's order"


class _HeadMap(Fault):
    first = ("attn_scores",)

    def kv_head_of(self, engine, right):
        return self.map(torch.arange(engine.config.heads), engine.config.heads, engine.config.kv_heads)


class GqaTiled(_HeadMap):
    id = "gqa-tile-vs-repeat"
    model = "llama-8-heads"
    wrong = "query head h reads kv head h mod 4, instead of h div 2"

    def map(self, head, heads, kv):
        return head % kv


class GqaTiledFour(GqaTiled):
    variant = "4-heads"
    model = "qwen3"
    wrong = "query head h reads kv head h mod 2, instead of h div 2"


class GqaDivisor(_HeadMap):
    id = "gqa-wrong-divisor"
    model = "llama-8-heads"
    wrong = "query head h reads kv head h div 4, where the group is 2"

    def map(self, head, heads, kv):
        return head // kv


class GqaCollapsed(_HeadMap):
    id = "gqa-wrong-divisor"
    variant = "collapsed"
    model = "qwen2"
    wrong = "every query head reads kv head 0"

    def map(self, head, heads, kv):
        return head // heads


class KvReplication(_HeadMap):
    id = "tp-kv-replication"
    model = "llama-8-heads-2-kv"
    wrong = "rank r of 4 holds kv head r mod 2, instead of r div 2"

    def map(self, head, heads, kv):
        rank = head // (heads // 4)
        return rank % kv


class HeadDimDerived(Fault):
    id = "head-dim-derived"
    model = "llama-head-dim"
    first = ("attn_scores",)
    wrong = "scale from a head size of 64/4 = 16 where it is 24"

    def attention_scale(self, engine, right):
        return (engine.config.hidden // engine.config.heads) ** -0.5


class HeadDimDerivedInRope(HeadDimDerived):
    variant = "rope"
    first = ("q_rope", "k_rope")
    wrong = "rotation and scale from a head size of 64/4 = 16 where it is 24; channels 16 to 23 untouched"

    def rotate(self, engine, right, x, cos, sin, which):
        size = engine.config.hidden // engine.config.heads
        return torch.cat([right(x[..., :size], cos, sin, which), x[..., size:]], -1)

    def frequencies(self, engine, right):
        config = engine.config
        size = config.hidden // config.heads
        return 1.0 / config.theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size), 1.0
