"""Rotation: which channels make a pair, at which angle, from which table."""

import torch

from ..fault import Fault
from ..frequencies import frequencies, llama3, plain, yarn, yarn_amplitude, yarn_ramp
from .tools import turn


class _Rope(Fault):
    first = ("q_rope", "k_rope")


class Pairing(_Rope):
    id = "rope-pairing-interleaved-vs-half"
    model = "qwen3"
    wrong = "channels 2i and 2i+1 are rotated together, instead of i and i + 8"

    def rotate(self, engine, right, x, cos, sin, which):
        pair = turn(engine, x[..., 0::2], x[..., 1::2], cos[:, None], sin[:, None])
        return torch.stack(pair, -1).flatten(-2)


class PairingLlama(Pairing):
    variant = "llama"
    model = "llama"


class NotReinterleaved(_Rope):
    id = "rope-output-not-reinterleaved"
    wrong = "channels 2i and 2i+1 are rotated together, and written as all first ones, then all second ones"

    def rotate(self, engine, right, x, cos, sin, which):
        return torch.cat(turn(engine, x[..., 0::2], x[..., 1::2], cos[:, None], sin[:, None]), -1)


class LeftSorted(_Rope):
    id = "rope-output-not-reinterleaved"
    variant, cancels = "sorted", True
    wrong = "rotation right, its channels then left as [0, 2, 4 .. 1, 3, 5 ..]"

    def rotate(self, engine, right, x, cos, sin, which):
        x = right(x, cos, sin, which)
        return torch.cat([x[..., 0::2], x[..., 1::2]], -1)


class WrittenInPairs(_Rope):
    id = "rope-output-not-reinterleaved"
    variant, cancels = "pairs", True
    model = "qwen2"
    wrong = "rotation right, pair i then written to channels 2i and 2i+1"

    def rotate(self, engine, right, x, cos, sin, which):
        return torch.stack(right(x, cos, sin, which).chunk(2, -1), -1).flatten(-2)


class TableLayout(_Rope):
    id = "rope-table-layout-mismatch"
    model = "qwen2"
    wrong = "table repeats each angle twice in a row, and is used for pairs i and i + 8"

    def rotate(self, engine, right, x, cos, sin, which):
        cos, sin = (t.repeat_interleave(2, -1)[:, None] for t in (cos, sin))
        return _with_two_angles(engine, x, cos, sin)


def _with_two_angles(engine, x, cos, sin):
    """cos and sin per channel; the two channels of a pair may get different angles."""
    a, b = x.float().chunk(2, -1)
    turned = torch.cat([-b, a], -1)
    store = lambda value: engine.store(value).float()
    return engine.store(store(x.float() * cos.float()) + store(turned * sin.float()))


class TableLayoutReverse(_Rope):
    id = "rope-table-layout-mismatch"
    variant = "reverse"
    wrong = "table repeats its first half, and is used for pairs 2i and 2i+1"

    def rotate(self, engine, right, x, cos, sin, which):
        cos, sin = (t.repeat(1, 2)[:, None].float() for t in (cos, sin))
        x = x.float()
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
        store = lambda value: engine.store(value).float()
        return engine.store(store(x * cos) + store(turned * sin))


class _Theta(_Rope):
    id = "rope-theta-wrong"
    theta = 1e4

    def frequencies(self, engine, right):
        return plain(self.theta, engine.config.head_dim), 1.0


class Theta(_Theta):
    model = "qwen3"
    wrong = "theta 10000 where the model has 1000000"


class ThetaLlama3(_Theta):
    variant = "500000"
    theta = 5e5
    wrong = "theta 500000 where the model has 10000"


class ThetaNear(_Theta):
    variant = "near"
    model, theta = "qwen2", 1.5e6
    wrong = "theta 1500000 where the model has 1000000"


class WrongDenominator(_Rope):
    id = "rope-partial-wrong-denominator"
    model = "llama-head-dim"
    wrong = "theta^(-2i/16) where the rotated dimensions are 24"

    def frequencies(self, engine, right):
        config = engine.config
        pair = torch.arange(config.head_dim // 2, dtype=torch.float32)
        return config.theta ** (-2 * pair / (config.hidden // config.heads)), 1.0


class TailNotWritten(_Rope):
    id = "rope-tail-dims-not-written"
    model = "qwen3-tied-biases"
    wrong = "channels 16 to 23 of each head are not written: they hold what the layer before left there, zeros at first"

    def begin(self, engine):
        self.buffers = {}

    def rotate(self, engine, right, x, cos, sin, which):
        x = right(x, cos, sin, which)
        old = self.buffers.get((which, x.shape))
        tail = torch.zeros_like(x[..., 16:]) if old is None else old[..., 16:]
        x = self.buffers[which, x.shape] = torch.cat([x[..., :16], tail], -1)
        return x


class TailNotWrittenInDecode(_Rope):
    id = "rope-tail-dims-not-written"
    variant = "decode"
    model, step = "llama-head-dim", 1
    wrong = "in decode, channels 16 to 23 of each head stay zero"

    def rotate(self, engine, right, x, cos, sin, which):
        x = right(x, cos, sin, which)
        if engine.call > 0:
            x[..., 16:] = 0
        return x


class Llama3Missing(_Rope):
    id = "rope-scaling-llama3-missing"
    model = "llama-llama3"
    wrong = "plain frequencies where the model has llama3 scaling"

    def frequencies(self, engine, right):
        return plain(engine.config.theta, engine.config.head_dim), 1.0


class UnrotatedLayers(_Rope):
    id = "rope-on-nope-layers"
    layers = (3,)
    wrong = "every fourth layer is left unrotated, as SmolLM3 has it and this model has not"

    def rotate(self, engine, right, x, cos, sin, which):
        return x.clone() if engine.layer % 4 == 3 else right(x, cos, sin, which)


class LocalTheta(_Rope):
    id = "rope-local-global-theta-swapped"
    model, layers, arithmetics = "qwen2-window", (2, 3), ("f32", "bf16", "f16")
    wrong = "windowed layers are rotated with a theta of their own, 1000000 where the model has 10000 for all"

    def frequencies(self, engine, right):
        return (plain(1e6, engine.config.head_dim), 1.0) if engine.config.windows[engine.layer] else right()


class _Llama3Factor(_Rope):
    id = "rope-scaling-factor-wrong"
    model = "llama-llama3"
    factor = 32.0

    def frequencies(self, engine, right):
        rope, ones = engine.config.rope, plain(engine.config.theta, engine.config.head_dim)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        return llama3(ones, self.factor, low, high, rope["original_max_position_embeddings"]), 1.0


class Llama3Factor(_Llama3Factor):
    wrong = "factor 32 where the model has 8"


class Llama3SmallerFactor(_Llama3Factor):
    variant = "4"
    factor = 4.0
    wrong = "factor 4 where the model has 8"


class LinearFactor(_Rope):
    id = "rope-scaling-factor-wrong"
    variant = "linear"
    model = "llama-linear"
    arithmetics = ("f32", "bf16", "f16")
    wrong = "linear factor 8 where the model has 4"

    def frequencies(self, engine, right):
        return plain(engine.config.theta, engine.config.head_dim) / 8.0, 1.0


class _Yarn(_Rope):
    model = "llama-yarn"
    arithmetics = ("f32", "bf16", "f16")


class YarnBetasSwapped(_Yarn):
    id = "yarn-ramp-params-wrong"
    wrong = "beta_fast and beta_slow swapped"

    def frequencies(self, engine, right):
        config = engine.config
        low, high = yarn_ramp(config.head_dim, config.theta, config.rope["original_max_position_embeddings"], 1, 32)
        return yarn(config, config.rope["factor"], (low, high)), right()[1]


class YarnOriginal(_Yarn):
    id = "yarn-ramp-params-wrong"
    variant = "context"
    wrong = "the ramp from a context of 128 where the original one is 32"

    def frequencies(self, engine, right):
        config = engine.config
        ramp = yarn_ramp(config.head_dim, config.theta, config.max_positions, 32, 1)
        return yarn(config, config.rope["factor"], ramp), right()[1]


class YarnTruncated(_Yarn):
    id = "yarn-ramp-params-wrong"
    variant = "truncate"
    model = "llama-yarn-untruncated"
    wrong = "the ramp's ends rounded to whole pairs where the model says truncate: false"

    def frequencies(self, engine, right):
        config = engine.config
        ramp = yarn_ramp(config.head_dim, config.theta, config.rope["original_max_position_embeddings"], 32, 1)
        return yarn(config, config.rope["factor"], ramp), right()[1]


class YarnAmplitudeOne(_Yarn):
    id = "yarn-mscale-wrong-on-cos-sin"
    wrong = "cosine and sine times 1 instead of 0.1 ln 4 + 1"

    def frequencies(self, engine, right):
        return right()[0], 1.0


class YarnAmplitudeIgnored(_Yarn):
    id = "yarn-mscale-wrong-on-cos-sin"
    variant = "explicit"
    model = "llama-yarn-factor"
    wrong = "the model's attention_factor 1.3 ignored: 0.1 ln 4 + 1"

    def frequencies(self, engine, right):
        return right()[0], yarn_amplitude(engine.config.rope["factor"])


class YarnAmplitudeAllDim(_Yarn):
    id = "yarn-mscale-wrong-on-cos-sin"
    variant = "all-dim"
    model, faint = "llama-yarn-mscale", ("bf16",)
    wrong = "0.1 mscale_all_dim ln 4 + 1 alone instead of the ratio with mscale's"

    def frequencies(self, engine, right):
        rope = engine.config.rope
        return right()[0], yarn_amplitude(rope["factor"], rope["mscale_all_dim"])


class LowPrecisionFrequencies(_Rope):
    id = "rope-table-low-precision"
    prompt, steps, faint_outside = 240, 3, ("bf16", "q8")
    wrong = "frequencies held in bfloat16"

    def frequencies(self, engine, right):
        return right()[0].bfloat16().float(), 1.0


class LowPrecisionPositions(_Rope):
    id = "rope-table-low-precision"
    variant = "positions"
    prompt, steps = 300, 3
    wrong = "positions held in bfloat16: above 256 they are rounded to even ones"

    def rope_positions(self, engine, right):
        return right().bfloat16().float()


class LowPrecisionTable(_Rope):
    id = "rope-table-low-precision"
    variant = "table"
    model, arithmetics, faint_outside = "qwen2", ("f32", "q8"), ("q8",)
    wrong = "cosine and sine held in bfloat16"

    def cos_sin(self, engine, right, positions):
        return tuple(t.bfloat16().float() for t in right(positions))


class Dynamic(_Rope):
    id = "rope-theta-wrong"
    variant = "dynamic"
    model = "llama-dynamic"
    arithmetics = ("f32", "bf16", "f16")
    wrong = "the base not raised with length where the model has dynamic scaling"

    def frequencies(self, engine, right):
        return frequencies(engine.config, 1)
