"""The MLP: its activation, its two branches, and the embedding before the first layer."""

import torch

from ..fault import Fault


class _Act(Fault):
    first = ("mlp_act",)

    def activation(self, engine, right, gate):
        return engine.store(self.act(gate.float()))


class Gelu(_Act):
    id = "act-wrong-fn"
    model = "qwen2"
    wrong = "gelu (erf) where the model has silu"

    def act(self, gate):
        return torch.nn.functional.gelu(gate)


class QuickGelu(_Act):
    id = "act-wrong-fn"
    variant = "quick"
    wrong = "gate sigmoid(1.702 gate) where the model has silu"

    def act(self, gate):
        return gate * torch.sigmoid(1.702 * gate)


class SquaredRelu(_Act):
    id = "act-wrong-fn"
    variant = "relu2"
    model = "qwen3"
    wrong = "squared relu where the model has silu"

    def act(self, gate):
        return torch.relu(gate) ** 2


class GeluErf(_Act):
    """4.7e-4 at most: bfloat16's own rounding is larger, and GGUF files of these families have no gelu."""

    id = "act-gelu-erf-vs-tanh"
    model = "llama-gelu"
    arithmetics, faint_outside = ("f32", "f16"), ("f16",)
    wrong = "gelu by erf where the model has the tanh formula"

    def act(self, gate):
        return torch.nn.functional.gelu(gate)


class GateUpSwapped(Fault):
    id = "mlp-gate-up-swapped"
    first = ("mlp_act",)
    wrong = "silu(up) times gate"

    def gated(self, engine, right, gate, up):
        return right(up, gate)


class GateUpSwappedInFile(Fault):
    id = "mlp-gate-up-swapped"
    variant = "loader"
    model, first = "qwen3", ("gate_proj", "up_proj")
    wrong = "weights of gate and up loaded into each other"

    def load_weight(self, engine, right, name):
        stem, module, part = name.rsplit(".", 2) if name.startswith("layers.") else (name, "", "")
        other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(module)
        return right(f"{stem}.{other}.{part}") if other else right(name)


class EmbedScale(Fault):
    id = "embed-scale-missing"
    first, layers = ("embed",), ()
    wrong = "embedding times sqrt(64), which this model does not have"

    def embed(self, engine, right, ids):
        return right(ids) * 8


class EmbedTail(Fault):
    id = "embedding-gather-tail"
    model, first, layers = "qwen2", ("embed",), ()
    wrong = "the last 4 of 64 columns are not gathered: zero"

    def embed(self, engine, right, ids):
        rows = right(ids)
        rows[:, 60:] = 0
        return rows


class EmbedTailStale(EmbedTail):
    variant = "stale"
    model = "qwen3"
    wrong = "the last 8 of 64 columns are those of the row before"

    def embed(self, engine, right, ids):
        rows = right(ids)
        rows[1:, 56:] = rows[:-1, 56:].clone()
        return rows


class Inplace(Fault):
    id = "inplace-aliasing"
    first = ("attn_resid",)
    wrong = "the projection's output is written over the residual stream: their sum is twice the output"

    def add(self, engine, right, x, y, name):
        return right(y if name == "attn_resid" else x, y, name)


class InplaceActivation(Fault):
    id = "inplace-aliasing"
    variant = "mlp"
    model, first = "qwen2", ("mlp_act",)
    wrong = "the activated gate is written over up's buffer: silu(gate) squared"

    def gated(self, engine, right, gate, up):
        return right(gate, engine.activation(gate))
