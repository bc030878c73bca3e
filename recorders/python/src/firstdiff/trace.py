"""Writes traces (format `firstdiff.trace/1`); knows nothing about any engine.

    with Writer("my.trace", producer={"name": "my engine", "version": "1.0"}) as writer:
        writer.step([1, 2, 3], {"embed": array, "logits": array})

A trace is a folder: `trace.json`, and one `step-NNNNNN.safetensors` per forward call. The safetensors bytes are
written here, straight from the buffers: that takes one pass and no copy, and bfloat16 needs no library.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Union

import numpy as np

FORMAT = "firstdiff.trace/1"

# safetensors dtype -> bytes per element
_SIZES = {"F64": 8, "I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2}
_FROM_NUMPY = {"float64": "F64", "int64": "I64", "int32": "I32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# the same by dtype, in this machine's order of bytes: asking numpy for a name takes longer than writing a small tensor
_NATIVE = {np.dtype(name): kind for name, kind in _FROM_NUMPY.items() if name != "bfloat16" and sys.byteorder == "little"}
_BUFFER = 1 << 20
_STEP_FILE = re.compile(r"step-\d{6,}\.safetensors")
_TEMPORARY = re.compile(r"(\.\d+-\d+)?\.tmp$")  # process and thread, which another writer does not share
_RESERVED = {"token_ids", "positions", "sequence", "sampled"}


class TraceRefused(ValueError):
    """The folder cannot be used for a new trace; the message says what to do instead."""


@dataclass(frozen=True)
class Raw:
    """Elements numpy cannot name (bfloat16): any contiguous buffer, its safetensors dtype and its shape."""

    data: Any
    dtype: str
    shape: tuple[int, ...]


Array = Union[np.ndarray, Raw]
Integers = Union[Sequence[int], np.ndarray]


def _tensor(name: str, value: Array) -> tuple[str, tuple[int, ...], memoryview]:
    """dtype, shape and little-endian bytes of one tensor."""
    if type(value) is np.ndarray and value.size and value.flags.c_contiguous and value.dtype in _NATIVE:
        return _NATIVE[value.dtype], value.shape, memoryview(value).cast("B")  # nearly all of them
    if isinstance(value, Raw):
        dtype, shape, view = value.dtype, tuple(int(n) for n in value.shape), memoryview(value.data)
    else:
        array = np.asarray(value)
        dtype = _FROM_NUMPY.get(array.dtype.name, "")
        shape = array.shape
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        # ravel, not the array itself: a memoryview cannot be cast to bytes when an axis is empty
        view = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    if dtype not in _SIZES:
        what = value.dtype if isinstance(value, Raw) else np.asarray(value).dtype
        raise TypeError(f"tap {name!r} has dtype {what}; a trace holds {', '.join(sorted(_SIZES))}")
    expected = math.prod(shape) * _SIZES[dtype]
    if view.nbytes != expected:
        raise ValueError(f"tap {name!r}: {view.nbytes} bytes do not make {dtype} of shape {list(shape)}")
    return dtype, shape, view.cast("B") if view.nbytes else memoryview(b"")


def size_of(tensors: Mapping[str, Array]) -> int:
    """Bytes of a file with these tensors, without its header: some hundred bytes a tensor."""
    return sum(_tensor(name, value)[2].nbytes for name, value in tensors.items())


def write_safetensors(path: Union[str, os.PathLike], tensors: Mapping[str, Array]) -> int:
    """Writes the tensors to `path` through a temporary name: the file is whole or absent. Returns its size in bytes."""
    ready = {name: _tensor(name, value) for name, value in tensors.items()}
    # widest elements first, so that each tensor is aligned to its own element
    order = sorted(ready, key=lambda name: (-_SIZES[ready[name][0]], name))
    entries = []
    offset = 0
    for name in order:
        dtype, shape, view = ready[name]
        end = offset + view.nbytes
        sizes = ",".join(map(str, shape))
        entries.append(f'{_quoted(name)}:{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[{offset},{end}]}}')
        offset = end
    text = f"{{{','.join(entries)}}}".encode()
    text += b" " * (-len(text) % 8)
    _write_whole(Path(path), [len(text).to_bytes(8, "little"), text, *(ready[name][2] for name in order)])
    return 8 + len(text) + offset


@lru_cache(maxsize=1 << 16)
def _quoted(name: str) -> str:
    return json.dumps(name)


def _write_whole(path: Path, parts: Sequence[Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb", _BUFFER) as file:
            for part in parts:
                file.write(part)
        os.replace(temporary, path)
    except BaseException:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the first failure is the one to report
        raise


class Writer:
    """One trace folder. `complete` in trace.json is false until `close` is told that the run ended normally."""

    def __init__(
        self,
        path: Union[str, os.PathLike],
        *,
        producer: Mapping[str, str],
        overwrite: bool = False,
        **metadata: Any,
    ) -> None:
        self.path = Path(path)
        self.steps = 0
        self.bytes = 0  # of the steps on disk
        self._closed = False
        self._metadata: dict[str, Any] = {"format": FORMAT, "producer": dict(producer), **metadata, "complete": False}
        self._made_folder = not self.path.is_dir()
        _claim(self.path, overwrite)
        self._write_metadata()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What trace.json says, or will say when it is next written."""
        return self._metadata

    def update(self, **metadata: Any) -> None:
        """Sets keys of trace.json; they reach the disk with `close`."""
        self._metadata.update(metadata)

    def update_nested(self, key: str, values: Mapping[str, Any]) -> None:
        """Adds to an object of trace.json, such as `environment`."""
        self._metadata[key] = {**self._metadata.get(key, {}), **values}

    def step(
        self,
        token_ids: Integers,
        taps: Mapping[str, Array],
        *,
        positions: Optional[Integers] = None,
        sequence: Optional[Integers] = None,
        sampled: Union[int, Integers, None] = None,
    ) -> Path:
        """Writes the next step and returns its file.

        `sampled` is the token chosen after the step: for several sequences one each, in the order in which they first
        appear in the step, and -1 for a sequence that goes on no further.
        """
        if self._closed:
            raise ValueError(f"the trace {self.path} is closed")
        tensors: dict[str, np.ndarray] = {"token_ids": _integers("token_ids", token_ids)}
        rows = tensors["token_ids"].shape[0]
        for name, values in (("positions", positions), ("sequence", sequence)):
            if values is not None:
                tensors[name] = _integers(name, values)
                if tensors[name].shape[0] != rows:
                    raise ValueError(f"{name} has {tensors[name].shape[0]} rows, token_ids has {rows}")
        if sampled is not None:
            tensors["sampled"] = _integers("sampled", np.atleast_1d(sampled))
            sequences = 1 if sequence is None else len(set(sequence))
            if not isinstance(sampled, int) and len(tensors["sampled"]) != sequences:
                raise ValueError(f"sampled has {len(tensors['sampled'])} tokens for {sequences} sequences")
        taken = _RESERVED & taps.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: reserved, not a tap")
        file = self.path / f"step-{self.steps:06d}.safetensors"
        self.bytes += write_safetensors(file, {**tensors, **taps})
        self.steps += 1
        return file

    def close(self, *, complete: bool = True) -> None:
        """Ends the trace. `complete=False` leaves it marked as cut short."""
        if self._closed:
            return
        self._closed = True
        self._metadata["complete"] = bool(complete)
        self._write_metadata()

    def discard(self) -> None:
        """Takes a trace without steps away again, with its folder where that was made for it."""
        self._closed = True
        (self.path / "trace.json").unlink()
        if self._made_folder:
            self.path.rmdir()

    def _write_metadata(self) -> None:
        text = json.dumps(self._metadata, indent=1, ensure_ascii=False) + "\n"
        _write_whole(self.path / "trace.json", [text.encode()])

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(complete=kind is None)


def _integers(name: str, values: Integers) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a list of integers, not {array.dtype} of shape {list(array.shape)}")
    return array.astype(np.int64)


def _claim(path: Path, overwrite: bool) -> None:
    """Makes `path` an empty folder, touching nothing but the files of an older trace."""
    if path.exists() and not path.is_dir():
        raise TraceRefused(f"{path} is a file; a trace is a folder, name another one")
    present = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if present:
        if not _is_trace(path):
            raise TraceRefused(f"{path} holds files that are no trace; name an empty or new folder")
        if not overwrite:
            raise TraceRefused(f"{path} already holds a trace; pass overwrite=True to replace it")
        # trace.json last: while any old step is left, the folder still says that it is a trace
        for name in present:
            if _STEP_FILE.fullmatch(_TEMPORARY.sub("", name)):
                (path / name).unlink()
        (path / "trace.json").unlink()
    path.mkdir(parents=True, exist_ok=True)


def _is_trace(path: Path) -> bool:
    try:
        declared = json.loads((path / "trace.json").read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(declared, str) and declared.startswith("firstdiff.trace/")
