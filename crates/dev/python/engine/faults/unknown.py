"""Faults that belong to no class: they must be found, and must not be given a name."""

import torch

from ..fault import Fault
from ..frequencies import plain


class _Tap(Fault):
    """`edit(engine, x)` changes the value of the first wrong tap, in the layers given."""

    def at(self, engine, right, tap, x):
        here = tap in self.first and (not self.layers or engine.layer in self.layers)
        return right(tap, engine.store(self.edit(engine, x.float().clone())) if here else x)


class Louder(_Tap):
    variant = "one-product-scaled"
    first, layers = ("up_proj",), (3,)
    wrong = "layer 3's up projection times 1.04"

    def edit(self, engine, x):
        return x * 1.04


class OneTokenFlipped(_Tap):
    variant = "one-token-flipped"
    model, first, layers = "qwen2", ("mlp_out",), (1,)
    wrong = "one token of layer 1's MLP output has its sign flipped"

    def edit(self, engine, x):
        if len(x) > 5:
            x[5] *= -1
        return x


class ConstantOffset(_Tap):
    variant = "constant-offset"
    first = ("mlp_norm",)
    wrong = "0.05 added to every channel of the second norm"

    def edit(self, engine, x):
        return x + 0.05


class Saturated(_Tap):
    variant = "saturated"
    model, first = "qwen3", ("attn_out",)
    wrong = "the attention output clipped to -0.5 .. 0.5"

    def edit(self, engine, x):
        return x.clamp(-0.5, 0.5)


class DeadChannel(_Tap):
    variant = "dead-channel"
    first, layers = ("gate_proj",), (0,)
    wrong = "channel 11 of layer 0's gate is zero"

    def edit(self, engine, x):
        x[:, 11] = 0
        return x


class OneLogit(_Tap):
    variant = "one-logit"
    model, first, layers = "qwen2", ("logits",), ()
    wrong = "logit 7 is raised by 1"

    def edit(self, engine, x):
        x[:, 7] += 1
        return x


class MixedTokens(_Tap):
    variant = "mixed-tokens"
    first, layers = ("v_proj",), (2,)
    wrong = "layer 2's values are 0.8 of their own and 0.2 of the token before"

    def edit(self, engine, x):
        return 0.8 * x + 0.2 * torch.cat([x[:1], x[:-1]])


class HeadAverage(_Tap):
    variant = "one-head-averaged"
    model, first, layers = "qwen3", ("attn_heads",), (1,)
    wrong = "head 2 of layer 1 is the mean of the other heads"

    def edit(self, engine, x):
        x[:, 2] = x[:, [0, 1, 3]].mean(1)
        return x


class Softsign(Fault):
    variant = "softsign"
    first = ("mlp_act",)
    wrong = "the gate's activation is g / (1 + |g|)"

    def activation(self, engine, right, gate):
        gate = gate.float()
        return engine.store(gate / (1 + gate.abs()))


class Temperatures(Fault):
    variant = "temperature-per-head"
    model, first = "qwen2", ("attn_scores",)
    wrong = "scores of head h times 1 + 0.1 h"

    def scores(self, engine, right, q, keys):
        s = right(q, keys)
        return engine.store(s.float() * (1 + 0.1 * torch.arange(len(s)))[:, None, None])


class LeakyResidual(Fault):
    variant = "leaky-residual"
    first = ("out",)
    wrong = "0.9 of the residual stream is kept at the end of a layer"

    def add(self, engine, right, x, y, name):
        return right(engine.store(0.9 * x.float()) if name == "out" else x, y, name)


class CoarsePositions(Fault):
    variant = "coarse-positions"
    model, first = "qwen3", ("q_rope", "k_rope")
    wrong = "positions are rounded down to multiples of 3"

    def rope_positions(self, engine, right):
        return right() // 3 * 3


class KeysTurnedBack(Fault):
    variant = "keys-turned-back"
    first = ("k_rope",)
    wrong = "keys are rotated by the negative angle"

    def rotate(self, engine, right, x, cos, sin, which):
        return right(x, cos, -sin if which == "k" else sin, which)


class MeanMagnitude(Fault):
    variant = "mean-magnitude-norm"
    model, first = "qwen2", ("attn_norm", "mlp_norm", "final_norm")
    wrong = "norms divide by the mean magnitude instead of the root of the mean square"

    def norm_formula(self, engine, right, x, weight, eps, name):
        x = x.float()
        return engine.store(weight * engine.store(x / (x.abs().mean(-1, keepdim=True) + eps)).float())


class TopKeys(Fault):
    variant = "sparse-attention"
    first = ("attn_probs",)
    wrong = "only the four strongest keys of each row are kept"

    def softmax(self, engine, right, scores, visible):
        strongest = scores.float().masked_fill(~visible, float("-inf"))
        least = strongest.topk(min(4, scores.shape[-1]), -1).values[..., -1:]
        return engine.store(torch.softmax(strongest.masked_fill(strongest < least, float("-inf")), -1))


class FirstTokenUnseen(Fault):
    variant = "first-token-unseen"
    model, first = "qwen3", ("attn_probs",)
    wrong = "from the third row on, the first token is masked"

    def visible(self, engine, right, keys):
        seen = right(keys)
        seen[engine.positions >= 2, 0] = False
        return seen


class HalfRotated(Fault):
    variant = "half-rotated"
    model, first = "qwen3", ("q_rope", "k_rope")
    wrong = "rotates as if 8 of 16 channels did: theta^(-2i/8), pairs i and i + 4, the rest untouched"

    def rotate(self, engine, right, x, cos, sin, which):
        inner = x.shape[-1] // 2
        return torch.cat([right(x[..., :inner], cos, sin, which), x[..., inner:]], -1)

    def frequencies(self, engine, right):
        return plain(engine.config.theta, engine.config.head_dim // 2), 1.0


class RowsExchanged(Fault):
    variant = "two-rows-exchanged"
    first, layers = ("mlp_out",), (1,)
    wrong = "rows 3 and 9 of layer 1's down projection exchanged"

    def load_weight(self, engine, right, name):
        values = right(name)
        if name == "layers.1.down_proj.weight":
            values = values.clone()
            values[[3, 9]] = values[[9, 3]]
        return values


class SquaredWeight(Fault):
    variant = "squared-norm-weight"
    model, first, layers = "qwen3", ("final_norm",), ()
    wrong = "the final norm's weight is squared"

    def norm_formula(self, engine, right, x, weight, eps, name):
        return right(x, weight**2 if name == "final_norm" else weight, eps, name)


class HeadFlippedInDecode(Fault):
    variant = "one-head-flipped-in-decode"
    first, step = ("attn_scores",), 1
    wrong = "in decode the scores of head 1 have the wrong sign"

    def scores(self, engine, right, q, keys):
        s = right(q, keys)
        if engine.call > 0:
            s[1] *= -1
        return s


class Quarters(Fault):
    variant = "values-shuffled-in-quarters"
    model, first = "qwen2", ("v_cache",)
    wrong = "each value's four quarters are cached in the order 2 0 3 1"

    def cache_read(self, engine, right):
        keys, values = right()
        return keys, values.unflatten(-1, (4, -1))[..., [2, 0, 3, 1], :].flatten(-2)


class ChannelsCutInDecode(Fault):
    """Always: no race."""

    variant = "channels-cut-in-decode"
    first, step = ("v_cache",), 1
    wrong = "in decode the last 4 channels of each head's newest value are zero"

    def cache_read(self, engine, right):
        keys, values = right()
        if engine.call > 0:
            values[-1, :, -4:] = 0
        return keys, values


class TableEndsEarly(Fault):
    """In every head: nothing that one part of a kernel handed to another."""

    variant = "table-ends-early"
    model, first, step = "qwen2", ("q_rope", "k_rope"), 3
    wrong = "the table of cosines is filled up to position 25; beyond it one channel holds NaN"

    def cos_sin(self, engine, right, positions):
        cos, sin = right(positions)
        cos[positions > 25, 2] = float("nan")
        return cos, sin


class LargeValuesLost(Fault):
    """By their size: no race."""

    variant = "large-values-lost-in-decode"
    model, first, step = "qwen3", ("v_cache",), 1
    wrong = "in decode values beyond 1.5 are cached as NaN: a format of a small range on the way"

    def cache_read(self, engine, right):
        keys, values = right()
        if engine.call > 0:
            values[-1][values[-1].abs() > 1.5] = float("nan")
        return keys, values
