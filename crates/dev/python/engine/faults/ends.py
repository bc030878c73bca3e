"""The output head and its logits."""

import torch

from ..fault import Fault


class _Logits(Fault):
    first, layers = ("logits",), ()


class TiedByMistake(_Logits):
    id = "lm-head-tied-by-mistake"
    wrong = "the embedding is used as output head though the file has its own"

    def load_weight(self, engine, right, name):
        return right("embed.weight" if name == "lm_head.weight" else name)


class Uninitialised(_Logits):
    id = "lm-head-uninitialised"
    model, prompt = "llama-tied", 80  # more rows than input channels: see weights.py
    wrong = "the tied output head was never set: normal numbers times 0.02"

    def load_weight(self, engine, right, name):
        weight = right(name)
        if name != "lm_head.weight":
            return weight
        return 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))


class Zeros(Uninitialised):
    variant = "zero"
    model = "qwen2-v5-tied"
    wrong = "the tied output head was never set: zeros"

    def load_weight(self, engine, right, name):
        return right(name) * (name != "lm_head.weight")


class LogitScale(_Logits):
    id = "logit-scale-missing"
    wrong = "logits times 0.0625, which this model does not have"

    def linear(self, engine, right, x, module):
        return right(x, module) * (0.0625 if module == "lm_head" else 1)


class SoftcapExtra(_Logits):
    """At logits of 5 a cap of 30 takes 1 %."""

    id = "final-softcap-extra"
    model, faint = "qwen3", ("q8",)
    wrong = "logits through 30 tanh(logits / 30) though the model has no cap"

    def linear(self, engine, right, x, module):
        y = right(x, module)
        return engine.store(30 * torch.tanh(y.float() / 30)) if module == "lm_head" else y
