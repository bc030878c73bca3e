"""The fingerprint of a safetensors checkpoint: the same 16 digits as `firstdiff inspect` prints.

A 64-bit FNV-1a hash over every tensor's name, format and shape, in order of name, and 64 stored bytes at its start,
middle and end. Some hundred bytes a tensor are read, whatever the size of the model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterator, Optional

import torch

_OFFSET, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1
_SAMPLE = 64
_MAX_HEADER = 100 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# a checkpoint of a model with other parts: its text model's tensors lose these
_PREFIXES = (("language_model.model.", "model."), ("language_model.", ""), ("model.language_model.", "model."))


def fingerprint(model: Any) -> Optional[str]:
    """That of the files `model` was loaded from; None where they are not known, or are not what the model holds."""
    folder = _folder(model.config)
    if folder is None:
        return None
    nested = "text_config" in json.loads((folder / "config.json").read_bytes())
    tensors: dict[str, tuple[Path, int, dict]] = {}
    for file in _weight_files(folder):
        tensors.update(_read_header(file, nested))
    if not _holds(model, tensors):
        return None
    return f"{_hash(tensors):016x}"


def _folder(config: Any) -> Optional[Path]:
    name = getattr(config, "_name_or_path", "")
    if not name:
        return None
    if os.path.isdir(name):
        folder = Path(name)
    else:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return folder if (folder / "config.json").is_file() else None


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    found = sorted(folder.glob("*.safetensors"))
    return found if len(found) == 1 else []


def _read_header(file: Path, nested: bool) -> Iterator[tuple[str, tuple[Path, int, dict]]]:
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"{file} is not a safetensors file")
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    for name, info in header.items():
        if nested:
            name = next((new + name[len(old):] for old, new in _PREFIXES if name.startswith(old)), name)
        yield name, (file, 8 + length, info)


def _holds(model: Any, tensors: dict) -> bool:
    """Whether the model's embedding is the file's: a model made from a config alone has its name but not its weights."""
    weight = model.get_input_embeddings().weight
    entry = tensors.get("model.embed_tokens.weight")
    if entry is None or entry[2]["dtype"] not in _DTYPES or list(weight.shape) != entry[2]["shape"]:
        return False
    stored = torch.frombuffer(bytearray(_samples(*entry)[1]), dtype=_DTYPES[entry[2]["dtype"]])
    row, column = divmod(_starts(entry[2])[1] // stored.element_size(), weight.shape[1])
    held = weight.detach()[row:row + 2].flatten()[column:column + stored.numel()]
    return torch.equal(held.cpu(), stored[:held.numel()].to(held.dtype))


def _starts(info: dict) -> list[int]:
    start, end = info["data_offsets"]
    return [0, (end - start) // 2, max(end - start - _SAMPLE, 0)]


def _samples(file: Path, base: int, info: dict) -> list[bytes]:
    start, end = info["data_offsets"]
    with open(file, "rb") as f:
        parts = []
        for at in _starts(info):
            f.seek(base + start + at)
            parts.append(f.read(min(_SAMPLE, end - start - at)))
    return parts


def _hash(tensors: dict) -> int:
    value = _OFFSET
    number = lambda n: n.to_bytes(8, "little")
    for name in sorted(tensors, key=str.encode):
        file, base, info = tensors[name]
        data = b"".join(number(len(part)) + part for part in (name.encode(), info["dtype"].encode()))
        data += number(len(info["shape"])) + b"".join(map(number, info["shape"]))
        data += b"".join(number(len(part)) + part for part in _samples(file, base, info))
        for byte in data:
            value = ((value ^ byte) * _PRIME) & _MASK
    return value
