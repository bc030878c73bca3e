"""Faults of Gemma 3: its embedding's factor, its norms, its two rotations, its cap."""

import torch

from ..fault import Fault
from ..frequencies import plain

FLOATS = ("f32", "bf16", "f16")


class _Gemma(Fault):
    model = "gemma3"
    arithmetics = FLOATS


class EmbedUnscaled(_Gemma):
    id = "embed-scale-missing"
    variant = "gemma"
    first, layers = ("embed",), ()
    wrong = "embeddings are not multiplied by 8"

    def embed_scale(self, engine, right):
        return 1.0


class EmbedScaledTwice(EmbedUnscaled):
    variant = "twice"
    wrong = "embeddings are multiplied by 8 twice"

    def embed_scale(self, engine, right):
        return right() ** 2


class WithoutOne(_Gemma):
    id = "norm-unit-offset-missing"
    variant = "gemma"
    first, layers = ("attn_norm",), (0,)
    wrong = "w where the model has 1 + w"

    def norm_formula(self, engine, right, x, weight, eps, name):
        return right(x, weight - 1, eps, name)


class NoPostNorm(_Gemma):
    id = "norm-placement-wrong"
    variant = "gemma"
    first, layers = ("attn_post_norm",), (0,)
    wrong = "norms after attention and MLP are left out"

    def post_norm(self, engine, right, x, name):
        return x


class OneTheta(_Gemma):
    id = "rope-local-global-theta-swapped"
    variant = "gemma"
    first, layers = ("q_rope", "k_rope"), (0,)
    wrong = "layers with a window are rotated by the other layers' base"

    def frequencies(self, engine, right):
        return plain(engine.config.theta, engine.config.head_dim), 1.0


class NotCapped(_Gemma):
    id = "final-softcap-missing"
    model, first, layers = "gemma3-caps-2-layers", ("logits",), ()
    wrong = "no cap of 3"

    def logits(self, engine, right, x):
        engine.at("logits_raw", x)
        return x


class CapFormula(_Gemma):
    id = "softcap-formula-wrong"
    model, first, layers = "gemma3-caps-2-layers", ("logits",), ()
    wrong = "x tanh(x / cap)"

    def logits(self, engine, right, x):
        engine.at("logits_raw", x)
        return engine.store(x.float() * torch.tanh(x.float() / engine.config.logit_cap))


class ScaleRounded(_Gemma):
    id = "embed-scale-rounding"
    model, first, layers = "gemma3-80", ("embed",), ()
    arithmetics = ("f32", "f16")
    wrong = "the root of 80 is rounded to bf16, whatever the weights are held in"

    def embed_scale(self, engine, right):
        return torch.tensor(engine.config.hidden**0.5).bfloat16().float()
