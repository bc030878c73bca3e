"""Says where an engine rounds: how many elements are the exact result of what was recorded before, rounded once.

    python rounding.py RUN ...          # folders that record_ENGINE.py made

Everything of layer 0 in the first step is computed again in float64 from the recorded inputs. For each tap: the format
its elements have, the share that is the nearest number of that format, the share that is the next one towards zero,
and the mean error in ulps, positive where the engine's number is the larger in size. Two taps come again under what an engine may do on the way:
round cosines and sines, round the root that a norm divides by, normalise a sum before it is rounded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "BF16": "<u2"}
_FRACTION = {"f32": 23, "bf16": 7, "f16": 10}


def load(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """name -> format of its elements, and the elements in float64."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = np.frombuffer(data[8 + size + start : 8 + size + end], _DTYPES[entry["dtype"]])
        dtype = entry["dtype"].lower()
        if dtype == "bf16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        elif dtype == "f32" and not (raw.view(np.uint32) & 0xFFFF).any():
            dtype = "bf16"  # stored wider than it is
        found[name] = dtype, raw.astype(np.float64).reshape(entry["shape"])
    return found


def rounded(value: np.ndarray, dtype: str) -> np.ndarray:
    """To the nearest of a short format; any other leaves it as it is."""
    if dtype == "f16":
        return value.astype(np.float16).astype(np.float64)
    if dtype == "bf16":
        bits = value.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    return value


class Layer:
    """The first layer of one step."""

    def __init__(self, run: Path) -> None:
        self.config = json.loads((run / "model/config.json").read_text())
        self.step = load(run / "trace/step-000000.safetensors")
        self.weights = load(run / "model/model.safetensors")

    def tap(self, name: str) -> np.ndarray:
        return self.step[name if name == "embed" else f"layers.0.{name}"][1]

    def has(self, name: str) -> bool:
        return f"layers.0.{name}" in self.step

    def weight(self, name: str) -> np.ndarray:
        return self.weights[f"model.layers.0.{name}"][1]

    def product(self, value: np.ndarray, name: str) -> np.ndarray:
        bias = f"model.layers.0.{name}.bias"
        return value @ self.weight(f"{name}.weight").T + (self.weights[bias][1] if bias in self.weights else 0)

    def norm(self, value: np.ndarray, name: str, stored: str = "") -> np.ndarray:
        root = np.sqrt(np.mean(value**2, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return value / rounded(root, stored) * self.weight(f"{name}.weight")

    def rotated(self, stored: str = "") -> np.ndarray:
        value = self.tap("q_norm" if self.has("q_norm") else "q_proj")
        size = self.config["head_dim"]
        value = value.reshape(len(value), -1, size)
        frequencies = self.config["rope_theta"] ** -(np.arange(0, size, 2) / size)
        angles = self.step["positions"][1][:, None, None] * frequencies
        first, second = np.split(value, 2, axis=-1)
        cos, sin = rounded(np.cos(angles), stored), rounded(np.sin(angles), stored)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attended(self) -> np.ndarray:
        queries, keys, values = self.tap("q_rope"), self.tap("k_cache"), self.tap("v_cache")
        group = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat(group, axis=1), values.repeat(group, axis=1)
        scores = np.einsum("thd,khd->htk", queries, keys) / np.sqrt(self.config["head_dim"])
        rows = np.arange(len(queries))
        scores[:, rows[:, None] < np.arange(len(keys))] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.einsum("htk,khd->thd", weights / weights.sum(axis=-1, keepdims=True), values)

    def exact(self) -> dict[str, np.ndarray]:
        gate, up = self.tap("gate_proj"), self.tap("up_proj")
        heads, short = self.tap("attn_heads"), self.step["embed"][0]
        return {
            "attn_norm": self.norm(self.tap("embed"), "input_layernorm"),
            "q_proj": self.product(self.tap("attn_norm"), "self_attn.q_proj"),
            "q_rope": self.rotated(),
            "q_rope, cosines and sines rounded": self.rotated(short),
            "attn_heads": self.attended(),
            "attn_out": self.product(heads.reshape(len(heads), -1), "self_attn.o_proj"),
            "attn_resid": self.tap("embed") + self.tap("attn_out"),
            "mlp_norm": self.norm(self.tap("attn_resid"), "post_attention_layernorm"),
            "mlp_norm, root rounded": self.norm(self.tap("attn_resid"), "post_attention_layernorm", short),
            "mlp_norm, of the sum in f32": self.norm(
                self.tap("embed") + self.tap("attn_out"), "post_attention_layernorm"
            ),
            "mlp_act": gate / (1 + np.exp(-gate)) * up,
            "mlp_out": self.product(self.tap("mlp_act"), "mlp.down_proj"),
        }


def describe(run: Path) -> None:
    layer = Layer(run)
    print(f"{run.name}\n  {'tap':<34}{'format':>7}{'nearest':>9}{'cut off':>9}{'mean ulp':>10}")
    for tap, exact in layer.exact().items():
        stored, value = layer.step[f"layers.0.{tap.partition(',')[0]}"]
        value = value.reshape(exact.shape)
        ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - _FRACTION[stored])
        error = (value - exact) * np.sign(exact) / ulp
        nearest = np.mean(np.abs(error) <= 0.5 + 1e-3)
        cut = np.mean((error > -1 - 1e-3) & (error <= 1e-3))
        print(f"  {tap:<34}{stored:>7}{nearest:>9.1%}{cut:>9.1%}{np.mean(np.clip(error, -9, 9)):>10.3f}")


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        describe(Path(folder))
