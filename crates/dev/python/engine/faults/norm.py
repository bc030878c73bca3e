"""Norms: their formula, epsilon, weights, place and axis; the residual they must leave alone."""

import torch

from ..fault import Fault

EVERY = ("attn_norm", "mlp_norm", "final_norm")


class _QkNorm(Fault):
    model = "qwen3"
    first = ("q_norm", "k_norm")


class QkNormMissing(_QkNorm):
    id = "qk-norm-missing"
    wrong = "no norm over heads of q and k"

    def head_norm(self, engine, right, x, name):
        return x.clone() if name in self.first else right(x, name)


class KNormMissing(QkNormMissing):
    variant = "k"
    first = ("k_norm",)
    wrong = "no norm over heads of k"


class QkNormAfterRope(_QkNorm):
    """One kernel norms and rotates: only its result can be seen."""

    id = "qk-norm-order-vs-rope"
    first = ("q_rope", "k_rope")
    hides = ("q_norm", "k_norm")
    wrong = "norm after the rotation instead of before, in one kernel"

    def head_norm(self, engine, right, x, name):
        return x

    def rotate(self, engine, right, x, cos, sin, which):
        name = f"{which}_norm"
        return engine.norm_formula(right(x, cos, sin, which), engine.weight(f"{name}.weight"), engine.norm_eps(name), name)


class QkNormAfterRopeModules(_QkNorm):
    """As modules that are called in the wrong order: the norm's output is what attention gets."""

    id = "qk-norm-order-vs-rope"
    variant = "modules"
    wrong = "norm after the rotation instead of before, as modules"

    def attention_block(self, engine, right, x):
        h = engine.at("attn_norm", engine.rms_norm(x, "attn_norm"))
        q, k, v = engine.project_qkv(h)
        q, k = engine.rotate_all(q, k)
        q, k = (engine.at(name, engine.head_norm(t, name)) for name, t in (("q_norm", q), ("k_norm", k)))
        engine.cache_write(k, v)
        keys, values = engine.cache_read()
        keys, values = engine.at("k_cache", keys), engine.at("v_cache", values)
        heads = engine.attention(q, keys, values)
        out = engine.at("attn_out", engine.linear(heads.flatten(1), "o_proj"))
        return engine.at("attn_resid", engine.add(x, out, "attn_resid"))


class QkNormWrongAxis(_QkNorm):
    id = "qk-norm-wrong-axis"
    wrong = "norm over all heads of q (and of k) together, instead of each"

    def head_norm(self, engine, right, x, name):
        weight = engine.weight(f"{name}.weight").repeat(x.shape[1])
        return engine.norm_formula(x.flatten(1), weight, engine.norm_eps(name), name).view_as(x)


class UnitOffsetDouble(Fault):
    id = "norm-unit-offset-double"
    first = EVERY
    wrong = "every norm weight w used as 1 + w"

    def norm_formula(self, engine, right, x, weight, eps, name):
        return right(x, weight + 1, eps, name)


class UnitOffsetMissing(Fault):
    id = "norm-unit-offset-missing"
    model, first = "qwen2", EVERY
    wrong = "every norm weight stored as w - 1, for kernels that add 1, in an engine whose kernels do not"

    def norm_formula(self, engine, right, x, weight, eps, name):
        return right(x, weight - 1, eps, name)


class _Eps(Fault):
    id = "norm-eps-wrong"
    model = "llama-small-embedding"
    first = EVERY
    layers = None
    eps = 1e-5

    def norm_eps(self, engine, right, name):
        return self.eps


class Eps(_Eps):
    wrong = "epsilon 1e-5 where the model has 1e-6"


class EpsTiny(_Eps):
    variant = "1e-12"
    eps, faint = 1e-12, ("bf16",)
    wrong = "epsilon 1e-12 where the model has 1e-6"


class EpsOrdinary(_Eps):
    """With an embedding of unit size the fault is a factor of 1.000005: only float32 can show it."""

    variant = "unit"
    model, arithmetics = "llama", ("f32",)
    wrong = "epsilon 1e-5 where the model has 1e-6, rows of unit size"


class NormOnBranch(Fault):
    id = "norm-placement-wrong"
    first = ("attn_resid",)
    wrong = "the second norm is applied to the attention output before the add, and not before the MLP"

    def add(self, engine, right, x, y, name):
        if name == "attn_resid":
            y = engine.at("mlp_norm", engine.rms_norm(y, "mlp_norm"))
        return right(x, y, name)

    def mlp_block(self, engine, right, x):
        gate = engine.at("gate_proj", engine.linear(x, "gate_proj"))
        up = engine.at("up_proj", engine.linear(x, "up_proj"))
        inner = engine.at("mlp_act", engine.gated(gate, up))
        out = engine.at("mlp_out", engine.linear(inner, "down_proj"))
        return engine.at("out", engine.add(x, out, "out"))


class NormOnOutput(Fault):
    id = "norm-placement-wrong"
    variant = "post"
    model = "qwen2"
    first = ("mlp_norm",)
    wrong = "the second norm is applied to the MLP's output; the MLP reads the residual stream as it is"

    def mlp_block(self, engine, right, x):
        gate = engine.at("gate_proj", engine.linear(x, "gate_proj"))
        up = engine.at("up_proj", engine.linear(x, "up_proj"))
        inner = engine.at("mlp_act", engine.gated(gate, up))
        out = engine.at("mlp_out", engine.linear(inner, "down_proj"))
        out = engine.at("mlp_norm", engine.rms_norm(out, "mlp_norm"))
        return engine.at("out", engine.add(x, out, "out"))


class DtypeMisread(Fault):
    id = "norm-weight-dtype-misread"
    first = EVERY
    wrong = "norm weights stored in float32 are read as bfloat16"

    def load_weight(self, engine, right, name):
        values = right(name)
        if not name.endswith("norm.weight"):
            return values
        stored = engine.weights.read(name).float().contiguous()
        return stored.view(torch.bfloat16)[: len(stored)].float()


class MeanSubtracted(Fault):
    id = "norm-mean-subtract"
    first = EVERY
    wrong = "the mean is subtracted first: LayerNorm for RMSNorm"

    def norm_formula(self, engine, right, x, weight, eps, name):
        x = x.float()
        return right(x - x.mean(-1, keepdim=True), weight, eps, name)


class FinalMissing(Fault):
    id = "final-norm-missing"
    model, first, layers = "qwen2", ("final_norm",), ()
    wrong = "no final norm"

    def rms_norm(self, engine, right, x, name):
        return x.clone() if name == "final_norm" else right(x, name)


class _ResidualFrom(Fault):
    """Both additions, or one, take something else than the residual stream."""

    first = ("attn_resid", "out")

    def begin(self, engine):
        self.kept = {}

    def at(self, engine, right, tap, x):
        self.kept[tap] = x
        return right(tap, x)


class ResidualFromNormed(_ResidualFrom):
    id = "residual-from-normed"
    wrong = "the norm's output is added back instead of the norm's input"

    def add(self, engine, right, x, y, name):
        return right(self.kept["attn_norm" if name == "attn_resid" else "mlp_norm"], y, name)


class AttentionResidualFromNormed(_ResidualFrom):
    id = "residual-from-normed"
    variant = "attention"
    model, first = "qwen3", ("attn_resid",)
    wrong = "the first norm wrote over the residual that attention's output is added to"

    def add(self, engine, right, x, y, name):
        return right(self.kept["attn_norm"] if name == "attn_resid" else x, y, name)


class ResidualMultiplier(Fault):
    id = "residual-multiplier-missing"
    first = ("attn_resid", "out")
    wrong = "both branches times 0.22 before they are added, a multiplier that this model does not have"

    def add(self, engine, right, x, y, name):
        return right(x, engine.store(0.22 * y.float()), name)


class Parallel(_ResidualFrom):
    id = "parallel-residual-norm-crossed"
    first = ("mlp_norm",)
    wrong = "attention and MLP both read the layer's input"

    def attention_block(self, engine, right, x):
        self.before = x
        return right(x)

    def rms_norm(self, engine, right, x, name):
        return right(self.before if name == "mlp_norm" else x, name)


class NamesCrossed(Fault):
    id = "parallel-residual-norm-crossed"
    variant = "names"
    model, first = "qwen2", ("attn_norm", "mlp_norm")
    wrong = "weights of a layer's two norms exchanged"

    def load_weight(self, engine, right, name):
        other = {"attn_norm": "mlp_norm", "mlp_norm": "attn_norm"}
        layer, module, part = name.rsplit(".", 2) if name.startswith("layers.") else ("", "", "")
        return right(f"{layer}.{other[module]}.{part}" if module in other else name)
