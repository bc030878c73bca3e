"""Attention as a formula: scale, mask, window, softmax."""

import torch

from ..fault import Fault
from .tools import FUSED

FLOATS = ("f32", "bf16", "f16")


class _Scale(Fault):
    first = ("attn_scores",)

    def attention_scale(self, engine, right):
        return self.scale(engine, engine.config.head_dim)


class ScaleMissing(_Scale):
    id = "attn-scale-missing"
    wrong = "scores not scaled"

    def scale(self, engine, size):
        return 1.0


class ScaleTwice(_Scale):
    id = "attn-scale-twice"
    model = "qwen2"
    wrong = "scaled by 1/sqrt(16) twice: queries beforehand, scores again"

    def scale(self, engine, size):
        return 1 / size


class ScaleWrongDim(_Scale):
    id = "attn-scale-wrong-dim"
    model = "qwen3"
    wrong = "scale 14^-0.5 where the head size is 16: as 224 for 256"

    def scale(self, engine, size):
        return 14**-0.5


class ScaleHidden(_Scale):
    id = "attn-scale-wrong-dim"
    variant = "hidden"
    wrong = "scale from the hidden size 64 where the head size is 16"

    def scale(self, engine, size):
        return engine.config.hidden**-0.5


class ScaleLayer(_Scale):
    id = "attn-scale-layer-idx"
    layers = (1, 2, 3)
    wrong = "scores divided by the layer's number from 1 as well"

    def scale(self, engine, size):
        return size**-0.5 / (engine.layer + 1)


class ScaleMissingFused(ScaleMissing):
    variant = "fused"
    model = "qwen2"
    first, hides = ("attn_heads",), FUSED
    wrong = "scores not scaled, inside one kernel"


class ValueScale(Fault):
    id = "attn-value-scale-missing"
    model, first = "qwen3", ("attn_heads",)
    wrong = "attention's output divided by 1.414, a factor that this model does not have"

    def weigh_values(self, engine, right, probs, values):
        return engine.store(right(probs, values).float() / 1.414)


class _Mask(Fault):
    first = ("attn_probs",)

    def visible(self, engine, right, keys):
        row, key = engine.positions[:, None], torch.arange(keys)[None]
        return self.seen(engine, row, key)


class CausalMissing(_Mask):
    id = "mask-causal-missing"
    model = "qwen3"
    wrong = "no causal mask: each row of a prompt sees all of it"

    def seen(self, engine, row, key):
        return (key >= 0) & (row >= 0)


class OneFuture(_Mask):
    id = "mask-off-by-one"
    wrong = "one later key is visible"

    def seen(self, engine, row, key):
        return key <= row + 1


class SelfExcluded(_Mask):
    id = "mask-off-by-one"
    variant = "self"
    model = "qwen2"
    wrong = "the row's own key is masked, except for the first row"

    def seen(self, engine, row, key):
        return (key < row) | ((key == 0) & (row == 0))


class OneFutureFused(OneFuture):
    variant = "fused"
    model = "qwen3"
    first, hides = ("attn_heads",), FUSED
    wrong = "one later key is visible, inside one kernel"


class IgnoresPrefix(_Mask):
    id = "mask-ignores-prefix"
    chunk, step = 8, 1
    wrong = "later chunks of the prompt see only themselves"

    def seen(self, engine, row, key):
        own = key >= engine.length if len(engine.ids) > 1 else key >= 0
        return (key <= row) & own


class _Window(Fault):
    model = "qwen2-window"
    first = ("attn_probs",)
    layers = (2, 3)
    arithmetics = FLOATS

    def visible(self, engine, right, keys):
        window = engine.config.windows[engine.layer]
        row, key = engine.positions[:, None], torch.arange(keys)[None]
        return right(keys) if window is None else self.seen(row, key, window)


class WindowPlusOne(_Window):
    id = "swa-off-by-one"
    wrong = "window of 8 keys where the model has 7"

    def seen(self, row, key, window):
        return (key <= row) & (key > row - window - 1)


class WindowMinusOne(_Window):
    id = "swa-off-by-one"
    variant = "minus"
    wrong = "window of 6 keys where the model has 7"

    def seen(self, row, key, window):
        return (key <= row) & (key > row - window + 1)


class WindowPlusOneFused(WindowPlusOne):
    variant = "fused"
    first, hides = ("attn_heads",), FUSED
    wrong = "window of 8 keys where the model has 7, inside one kernel"


class WindowIgnored(_Window):
    id = "swa-not-applied"
    wrong = "windowed layers see everything"

    def seen(self, row, key, window):
        return key <= row


class WindowSign(_Window):
    id = "swa-mask-sign"
    wrong = "the band lies on the other side: keys older than the window are kept, those inside masked; own key visible"

    def seen(self, row, key, window):
        return (key == row) | (key <= row - window)


class WindowWhenDisabled(Fault):
    id = "swa-applied-when-disabled"
    model = "qwen2-window-unused"
    first, layers, arithmetics = ("attn_probs",), (2, 3), FLOATS
    wrong = "window of 7 in layers 2 and 3 though use_sliding_window is false"

    def visible(self, engine, right, keys):
        seen = right(keys)
        if engine.layer in self.layers:
            seen &= torch.arange(keys)[None] > engine.positions[:, None] - 7
        return seen


class WindowOnWrongLayers(_Window):
    id = "swa-applied-when-disabled"
    variant = "layers"
    layers = (0, 1, 2, 3)
    wrong = "the window is applied in layers 0 and 1 instead of 2 and 3"

    def visible(self, engine, right, keys):
        row, key = engine.positions[:, None], torch.arange(keys)[None]
        seen = key <= row
        return seen & (key > row - 7) if engine.layer < 2 else seen
