"""The tiny models that faults are planted in: `tests/tiny.py`'s configurations, made once under target/.

Quantised ones are GGUF files made from a copy with an MLP of 96 channels: their blocks hold 32. llama.cpp's files know no
sliding window in these families, so those models exist in float formats only.
"""

import dataclasses
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from . import config as configs
from .arithmetic import ARITHMETICS
from .frequencies import frequencies, plain
from .weights import Folder, Gguf

ROOT = Path(__file__).resolve().parents[4]
CACHE = ROOT / "target" / "dev" / "tiny"
sys.path.append(str(ROOT / "tests"))

# Models that tests/tiny.py does not have: (its name there, further settings)
EXTRA = {}
# A window, a length-dependent scaling, or an amplitude on cosine and sine has no place in these GGUF files.
FLOAT_ONLY = ("window", "layer-types", "yarn", "dynamic", "linear")


def has_gguf(name):
    return not any(word in name for word in FLOAT_ONLY)


@lru_cache(maxsize=None)
def tiny_folder(name, wide=False):
    """The folder with config.json and safetensors."""
    base, settings = EXTRA.get(name, (name, {}))
    if wide:
        settings = {**settings, "intermediate_size": 96}
    folder = CACHE / (f"{name}-wide" if wide else name)
    if not (folder / "complete").exists():
        import tiny  # brings transformers along: only where something has to be made

        folder.mkdir(parents=True, exist_ok=True)
        made = dataclasses.replace(tiny.BY_NAME[base], name=folder.name, config={**tiny.BY_NAME[base].config, **settings})
        with torch.random.fork_rng():
            tiny.make(made, folder)
        (folder / "complete").touch()
    return folder


@lru_cache(maxsize=None)
def load(name, arithmetic):
    """(config, weights, what `firstdiff --model` takes) of a tiny model in an arithmetic."""
    kind = ARITHMETICS[arithmetic].quantised
    folder = tiny_folder(name, wide=kind is not None)
    config = configs.read(folder)
    if kind is None:
        return config, Folder(folder), folder
    file = folder / f"{kind.name}.gguf"
    if not file.exists():
        _write_gguf(folder, config, kind, file)
    return config, Gguf(file, config), file


def _write_gguf(folder, config, kind, file):
    import json

    import gguf_models

    if not has_gguf(folder.name):
        raise ValueError(f"{folder.name} cannot be written as GGUF")
    ratios = plain(config.theta, config.head_dim) / frequencies(config, 1)[0]
    freqs = ratios.numpy().astype(np.float32) if config.rope["rope_type"] == "llama3" else None
    raw = json.loads((folder / "config.json").read_text())
    settings = {**raw, "head_dim": config.head_dim, "rope_theta": config.theta, "rms_norm_eps": config.eps,
                "num_key_value_heads": config.kv_heads}  # fmt: skip
    weights = {n: t for part in sorted(folder.glob("*.safetensors")) for n, t in load_file(part).items()}
    temporary = file.with_suffix(".tmp")
    gguf_models.write(temporary, settings, weights, kind, freqs)
    os.replace(temporary, file)


def prompt_ids(length, vocab=96, seed=2):
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
