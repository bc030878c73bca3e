"""ggml's tensors as they lie in memory, read without copying them first."""

from __future__ import annotations

import ctypes
from typing import Any, Optional

import numpy as np
from llama_cpp._ggml import libggml


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`; `check_layout` compares it with the library that is loaded."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

_OBJECT_HEADER = 32  # sizeof(struct ggml_object), which ggml_tensor_overhead counts in
_NUMPY = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i64": np.int64, "f64": np.float64}


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_op_desc = _bind("ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)
_type_name = _bind("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
_get_name = _bind("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
_nbytes = _bind("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
_overhead = _bind("ggml_tensor_overhead", ctypes.c_size_t)
_tensor_get = _bind(
    "ggml_backend_tensor_get", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
)
_is_host = _bind("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)
_buffer_name = _bind("ggml_backend_buffer_name", ctypes.c_char_p, ctypes.c_void_p)


def check_layout(pointer: Optional[int] = None) -> None:
    """Raises if this ggml lays its tensors out in another way than `Tensor`."""
    size = _overhead() - _OBJECT_HEADER
    fits = size == ctypes.sizeof(Tensor)
    if fits and pointer is not None:
        fits = _get_name(pointer) == Tensor.from_address(pointer).name
    if not fits:
        raise RuntimeError(
            f"this llama.cpp has another struct ggml_tensor ({size} bytes, expected {ctypes.sizeof(Tensor)}); "
            "a firstdiff made for this version of llama-cpp-python is needed"
        )


# from what a tensor's operation is to its name: the same where it is the same operation, on the same inputs
_IDENTITY: Any = ctypes.c_char * (Tensor.name.offset + 64 - Tensor.op.offset)
_LAYOUT: Any = ctypes.c_char * ctypes.sizeof(Tensor)  # where it lies in memory, too


def identity(pointer: int) -> Any:
    """A view, whose `raw` is the same for as long as the tensor at this address computes the same from the same."""
    return _IDENTITY.from_address(pointer + Tensor.op.offset)


def sources(pointer: int) -> tuple[int, int, int]:
    """Addresses of a tensor's first three inputs, 0 for none."""
    first = (ctypes.c_size_t * 3).from_address(pointer + Tensor.src.offset)
    return first[0], first[1], first[2]


def operation(pointer: int) -> str:
    return _op_desc(pointer).decode()


def type_name(kind: int) -> str:
    return _type_name(kind).decode()


def buffer_name(tensor: Tensor) -> str:
    buffer = _buffer(tensor)
    return _buffer_name(buffer).decode() if buffer else ""


def _buffer(tensor: Tensor) -> Optional[int]:
    return tensor.buffer or (tensor.view_src.contents.buffer if tensor.view_src else None)


class Reader:
    """Reads tensors by their addresses. How one lies in memory is worked out once, for as long as it lies so."""

    def __init__(self) -> None:
        self._views: dict[int, tuple[Any, bytes, np.ndarray]] = {}

    def read(self, pointer: int) -> np.ndarray:
        """The elements with axes in C order (ggml's first axis last), always four of them.

        In host memory this is a view that the next operation may overwrite: copy what is to be kept.
        """
        known = self._views.get(pointer)
        if known is not None and known[0].raw == known[1]:
            return known[2]
        tensor = Tensor.from_address(pointer)
        name = type_name(tensor.type)
        if name not in _NUMPY:
            raise TypeError(f"tensor {tensor.name.decode()!r} has type {name}, which is no plain number")
        size = _nbytes(pointer)  # of a strided view: from its first to its last byte
        buffer = _buffer(tensor)
        in_host = buffer is None or _is_host(buffer)
        if in_host:
            raw = (ctypes.c_char * size).from_address(tensor.data)
        else:
            raw = ctypes.create_string_buffer(size)
            _tensor_get(pointer, raw, 0, size)
        view = np.ndarray(tuple(tensor.ne)[::-1], _NUMPY[name], raw, 0, tuple(tensor.nb)[::-1])
        if in_host:
            layout = _LAYOUT.from_address(pointer)
            self._views[pointer] = layout, layout.raw, view
        return view


def activation_type(weight_type: int) -> Optional[str]:
    """The type that the CPU backend turns activations into before it multiplies them with such a weight."""

    class Traits(ctypes.Structure):
        _fields_ = [
            ("from_float", ctypes.c_void_p),
            ("vec_dot", ctypes.c_void_p),
            ("vec_dot_type", ctypes.c_int),
            ("nrows", ctypes.c_int64),
        ]

    try:
        traits = _bind("ggml_get_type_traits_cpu", ctypes.POINTER(Traits), ctypes.c_int)
    except AttributeError:
        return None  # a build that loads its CPU backend at run time does not export it
    return type_name(traits(weight_type).contents.vec_dot_type)
