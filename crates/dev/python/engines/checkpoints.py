"""Tiny random checkpoints of Llama, Qwen2 and Qwen3: a folder like a download, made without any framework.

Every parameter is random, norms and biases too: a norm weight of one would hide a norm that nobody applies. The scales
are those at which real models work: a residual stream near one, attention that prefers some keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from firstdiff.trace import Array, Raw, write_safetensors

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Tiny:
    """One checkpoint. `massive` is the size of one channel of the embedding, for one token in 16."""

    family: str = "llama"
    stored: str = "bf16"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: Optional[int] = None
    inner: Optional[int] = None
    vocabulary: int = 128
    theta: float = 10000.0
    epsilon: float = 1e-5
    tied: bool = False
    massive: float = 0.0
    seed: int = 0

    @property
    def size(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """config.json. Theta stands at the top: every engine reads it there, some read it nowhere else."""
        return {
            "architectures": [_CLASSES[self.family]],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner or 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.size,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 512,
            "rope_theta": self.theta,
            "rms_norm_eps": self.epsilon,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": _TORCH_NAMES[self.stored],
            "torch_dtype": _TORCH_NAMES[self.stored],
        }

    def weights(self) -> dict[str, np.ndarray]:
        """float32, under the names of a download."""
        random = np.random.default_rng(self.seed)
        inner, size = self.inner or 2 * self.hidden, self.size

        def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
            return random.standard_normal((rows, columns), np.float32) * np.float32(gain / columns**0.5)

        def norm(channels: int) -> np.ndarray:
            return np.exp(0.3 * random.standard_normal(channels, np.float32))

        embed = random.standard_normal((self.vocabulary, self.hidden), np.float32)
        if self.massive:
            embed[::16, self.hidden // 3] = self.massive
        weights = {"model.embed_tokens.weight": embed}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            weights[at + "input_layernorm.weight"] = norm(self.hidden)
            heads = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
            for name, count in heads.items():
                weights[f"{at}self_attn.{name}_proj.weight"] = matrix(count * size, self.hidden)
                if self.family == "qwen2":
                    weights[f"{at}self_attn.{name}_proj.bias"] = 0.5 * random.standard_normal(count * size, np.float32)
            if self.family == "qwen3":
                weights[at + "self_attn.q_norm.weight"] = norm(size)
                weights[at + "self_attn.k_norm.weight"] = norm(size)
            weights[at + "self_attn.o_proj.weight"] = matrix(self.hidden, self.heads * size)
            weights[at + "post_attention_layernorm.weight"] = norm(self.hidden)
            weights[at + "mlp.gate_proj.weight"] = matrix(inner, self.hidden)
            weights[at + "mlp.up_proj.weight"] = matrix(inner, self.hidden)
            weights[at + "mlp.down_proj.weight"] = matrix(self.hidden, inner)
        weights["model.norm.weight"] = norm(self.hidden)
        if not self.tied:
            weights["lm_head.weight"] = matrix(self.vocabulary, self.hidden, 1.5)
        return weights

    def write(self, folder: Path) -> Path:
        """The checkpoint as a folder."""
        save(folder, self.config(), {name: stored(value, self.stored) for name, value in self.weights().items()})
        return folder

    def prompt(self, tokens: int = 20, seed: int = 0) -> list[int]:
        """Random tokens that are none of the special ones. One of them has the massive channel, if there is one."""
        ids = np.random.default_rng(1000 + seed).integers(3, self.vocabulary, tokens)
        ids[tokens // 3] = 16 * (1 + seed % 4) % self.vocabulary
        return ids.tolist()


def small(stored: str, **settings: Any) -> Tiny:
    """A checkpoint of a few kilobytes: runs of it are kept as test data."""
    shape = {"hidden": 64, "heads": 2, "kv_heads": 1, "inner": 32, "layers": 1, "vocabulary": 16, "tied": True}
    return Tiny("llama", stored, **{**shape, **settings})


def save(folder: Path, config: dict[str, Any], weights: dict[str, Array]) -> None:
    """A folder of config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_safetensors(folder / "model.safetensors", weights)


def stored(value: np.ndarray, dtype: str) -> Array:
    """float32 rounded to the nearest of `dtype`, ties to even."""
    value = np.ascontiguousarray(value, np.float32)
    if dtype == "f32":
        return value
    if dtype == "f16":
        return value.astype(np.float16)
    bits = value.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return Raw(rounded.astype(np.uint16), "BF16", value.shape)
