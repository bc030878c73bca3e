"""Faults of mixtures of experts: scores, weights, and which expert."""

import torch

from ..fault import Fault

FLOATS = ("f32", "bf16", "f16")


class _Mixture(Fault):
    model = "qwen3_moe-2-layers"
    arithmetics = FLOATS


class NotNormalised(_Mixture):
    id = "moe-norm-topk-missing"
    first = ("router_weights",)
    wrong = "the chosen experts' weights are not divided by their sum"

    def router_weights(self, engine, right, scores, chosen):
        return engine.store(scores.gather(-1, chosen.long()))


class NormalisedOverTokens(_Mixture):
    id = "moe-normalise-wrong-dim"
    first = ("router_weights",)
    wrong = "the chosen experts' weights are divided by their sum over tokens"

    def router_weights(self, engine, right, scores, chosen):
        best = scores.gather(-1, chosen.long())
        return engine.store(best / best.sum(0, keepdim=True))


class Normalised(_Mixture):
    id = "moe-norm-topk-extra"
    model, first = "qwen3_moe-window-2-layers", ("router_weights",)
    wrong = "softmax over the chosen logits alone"

    def router_weights(self, engine, right, scores, chosen):
        best = scores.gather(-1, chosen.long())
        return engine.store(best / best.sum(-1, keepdim=True))


class RawLogits(_Mixture):
    id = "moe-raw-logits-as-weights"
    model, first = "qwen3_moe-window-2-layers", ("router_weights",)
    wrong = "weights are the router's logits"

    def router_scores(self, engine, right, logits):
        return logits.float()


class Sigmoid(_Mixture):
    id = "moe-score-func-wrong"
    model, first = "qwen3_moe-window-2-layers", ("router_weights",)
    wrong = "sigmoid where the model has softmax"

    def router_scores(self, engine, right, logits):
        return torch.sigmoid(logits.float())


class WithoutWeights(_Mixture):
    id = "moe-weights-not-applied"
    first = ("experts_out",)
    wrong = "the chosen experts' outputs are added as they are"

    def weigh_expert(self, engine, right, y, weight):
        return y


class NextExpert(_Mixture):
    id = "expert-index-wrong"
    first = ("experts_out",)
    wrong = "expert e + 1 for expert e"

    def expert(self, engine, right, x, number):
        return right(x, (number + 1) % engine.config.moe["experts"])


class ReversedExperts(_Mixture):
    id = "expert-index-wrong"
    variant = "reversed"
    model, first = "qwen3_moe-window-2-layers", ("experts_out",)
    wrong = "experts stacked last to first"

    def expert(self, engine, right, x, number):
        return right(x, engine.config.moe["experts"] - 1 - number)


class OneTooFew(_Mixture):
    model, first = "qwen3_moe-mixed-v5", ("router_topk",)
    layers = (1,)
    wrong = "the third of three experts is the last in rank instead of the next"

    def choose(self, engine, right, scores):
        chosen = right(scores)
        chosen[:, -1] = scores.argmin(-1)
        return chosen


class SharedDropped(_Mixture):
    id = "moe-shared-expert-dropped"
    model, first = "minimind-2-moe", ("mlp_out",)
    wrong = "the shared expert's output is not added"

    def with_shared(self, engine, right, chosen, shared):
        return chosen
