"""Which node of a llama.cpp graph is which tap.

Nodes are told apart by what they compute (the operation, and the weight it uses), because one name stands for several
nodes: `Qcur-0` is the product, the product plus bias, its reshape, the head norm's result and the rotated query.

What llama.cpp holds, as measured on its CPU backend:

* `kq-N` is query times key before scaling, padded to a multiple of 256 keys; the softmax node applies the scale.
* The V cache is transposed unless flash attention is on. With flash attention there are no scores and no probabilities.
* Products take activations rounded to the weight type's partner (q8_0, q8_1, q8_K, for a cache f16), and add in f32;
  flash attention adds the values up in f16.
* Of a mixture of experts, the chosen numbers, their weights and the sum are nodes; each expert's values are not taken.
* From the last layer's attention output on, only the rows whose logits were asked for are computed.
"""

from __future__ import annotations

import ctypes
import math
import re
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from . import _ggml
from ._session import Session

_WEIGHT = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_CACHE = re.compile(r"cache_([kv])_l(\d+)\b")
_NAMED = re.compile(r"(\w+)-(\d+)")

_PRODUCTS = {
    "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "attn_out",
    "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "mlp_out", "ffn_gate_inp": "router_logits",
}
_NORMS = {
    "attn_norm": "attn_norm", "attn_q_norm": "q_norm", "attn_k_norm": "k_norm", "ffn_norm": "mlp_norm",
    "post_attention_norm": "attn_post_norm", "post_ffw_norm": "mlp_post_norm",
}
_INPUTS = {"attn_output": "attn_heads", "ffn_down": "mlp_act"}
_SUMS = {"ffn_inp": "attn_resid", "sa_out": "attn_resid", "l_out": "out", "ffn_moe_out": "experts_out"}
# of mixtures of experts: (operation, name) -> tap
_ROUTING = {("SOFT_MAX", "ffn_moe_probs"): "router_scores", ("VIEW", "ffn_moe_topk"): "router_topk",
            ("DIV", "ffn_moe_weights_norm"): "router_weights"}  # fmt: skip
_ROPES = {"Qcur": "q_rope", "Kcur": "k_rope"}
_LAST_ROWS = ("final_norm", "logits")


class Node(NamedTuple):
    """What to take from a node: `kind` names a method of Evaluation; `taps` are its output's, then its input's."""

    kind: str
    taps: tuple[str, ...] = ()


@lru_cache(maxsize=None)
def classify(operation: str, name: str, first: str, second: str) -> Optional[Node]:
    """The node's part in the trace, from its operation, its name and the names of its first two inputs."""
    if operation == "GET_ROWS":
        return Node("tokens", ("embed",)) if first == "token_embd.weight" else Node("kept_rows")
    if operation == "SCALE" and name == "inp_scaled":
        return Node("rows", ("embed",))  # in place of the rows before they were scaled
    if operation == "MUL_MAT":
        if first in ("output.weight", "token_embd.weight"):
            return Node("rows", ("logits",))
        cache = _CACHE.match(first)
        if cache:
            at = f"layers.{cache[2]}."
            return Node("scores", (at + "attn_scores", at + "k_cache")) if cache[1] == "k" else Node(
                "values", (at + "v_cache",))
        weight = _WEIGHT.fullmatch(first)
        if weight and weight[2] in _PRODUCTS and weight[3] == "weight":
            at = f"layers.{weight[1]}."
            inputs = (at + _INPUTS[weight[2]],) if weight[2] in _INPUTS else ()
            return Node("rows", (at + _PRODUCTS[weight[2]], *inputs))
    if operation == "ADD":
        bias = _WEIGHT.fullmatch(second)
        if bias and bias[2] in _PRODUCTS and bias[3] == "bias":
            return Node("rows", (f"layers.{bias[1]}.{_PRODUCTS[bias[2]]}",))
        named = _NAMED.fullmatch(name)
        if named and named[1] in _SUMS:
            return Node("rows", (f"layers.{named[2]}.{_SUMS[named[1]]}",))
    if operation == "MUL":
        if second == "output_norm.weight":
            return Node("rows", ("final_norm",))
        weight = _WEIGHT.fullmatch(second)
        if weight and weight[2] in _NORMS:
            return Node("rows", (f"layers.{weight[1]}.{_NORMS[weight[2]]}",))
    if operation == "MUL_MAT_ID":
        return Node("multiplied") if _WEIGHT.fullmatch(first) else None
    named = _NAMED.fullmatch(name)
    if named and (operation, named[1]) in _ROUTING:
        return Node("rows", (f"layers.{named[2]}.{_ROUTING[operation, named[1]]}",))
    if operation == "ROPE":
        named = _NAMED.fullmatch(name)
        if named and named[1] in _ROPES:
            return Node("rotated", (f"layers.{named[2]}.{_ROPES[named[1]]}",))
    if operation == "SOFT_MAX":
        named = _NAMED.fullmatch(name)
        if named and named[1] == "kq_soft_max":
            at = f"layers.{named[2]}."
            return Node("softmax", (at + "attn_probs", at + "attn_scores"))
    if operation == "FLASH_ATTN_EXT":
        cache = _CACHE.match(second)
        if cache:
            return Node("flash", (f"layers.{cache[2]}.k_cache", f"layers.{cache[2]}.v_cache"))
    if operation == "SET_ROWS" and _CACHE.match(name) and name.startswith("cache_k_l"):
        return Node("cells")
    return None


def recorded(architecture: str) -> list[str]:
    """The taps that models of an architecture show, without their layers."""
    absent = set()
    if not architecture.endswith("moe"):
        absent |= {"router_logits", "router_scores", "router_topk", "router_weights", "experts_out"}
    else:
        absent |= {"gate_proj", "up_proj", "mlp_act", "mlp_out"}
    if architecture not in ("qwen3", "qwen3moe", "gemma3"):
        absent |= {"q_norm", "k_norm"}
    if architecture != "gemma3":
        absent |= {"attn_post_norm", "mlp_post_norm"}
    tables = (_PRODUCTS, _NORMS, _INPUTS, _SUMS, _ROUTING, _ROPES)
    names = {tap for table in tables for tap in table.values()} - absent
    return sorted(names | {"embed", "k_cache", "v_cache", "attn_scores", "attn_probs", "final_norm", "logits"})


class Evaluation:
    """One evaluation of the graph: what was taken from its nodes so far."""

    def __init__(self, wants: Callable[[str], bool], session: Session, cell_of: dict[int, int]) -> None:
        self.token_ids: Optional[np.ndarray] = None
        self.positions: Optional[np.ndarray] = None
        self.taps: dict[str, np.ndarray] = {}
        self.flash = False
        self.weights: dict[int, set[str]] = {}  # ggml type -> the buffers that hold weights of that type
        self._wants = wants
        self._session = session
        self._cell_of = cell_of  # position -> cell of the KV cache; outlives the step
        self._new_cells: Optional[np.ndarray] = None
        self._out_rows: Optional[np.ndarray] = None
        self._visible: Optional[np.ndarray] = None

    def take(self, node: Node, tensor: _ggml.Tensor) -> None:
        getattr(self, "_" + node.kind)(tensor, *node.taps)

    # ---- nodes ------------------------------------------------------------------------------------------------

    def _keep(self, tap: str, value: np.ndarray) -> None:
        if self._wants(tap):
            self.taps[tap] = np.array(value, order="C", copy=True)

    def _tokens(self, tensor: _ggml.Tensor, tap: str) -> None:
        self.token_ids = _flat(_ggml.source(tensor, 1))
        self._keep(tap, _ggml.read(tensor)[0, 0])

    def _kept_rows(self, tensor: _ggml.Tensor) -> None:
        self._out_rows = _flat(_ggml.source(tensor, 1))

    def _rows(self, tensor: _ggml.Tensor, tap: str, input_tap: Optional[str] = None) -> None:
        value = _ggml.read(tensor)[0]
        self._keep(tap, value[0] if value.shape[0] == 1 and not tap.endswith(("q_norm", "k_norm")) else value)
        if _ggml.operation(ctypes.addressof(tensor)) == "MUL_MAT":
            self._multiplied(tensor)
        if input_tap is not None:
            self._keep(input_tap, _ggml.read(_ggml.source(tensor, 1))[0, 0])

    def _multiplied(self, tensor: _ggml.Tensor) -> None:
        weight = _ggml.source(tensor, 0)
        if weight is not None:
            self.weights.setdefault(weight.type, set()).add(_ggml.buffer_name(weight))

    def _rotated(self, tensor: _ggml.Tensor, tap: str) -> None:
        if self.positions is None:
            self.positions = _flat(_ggml.source(tensor, 1))
        self._keep(tap, _ggml.read(tensor)[0])

    def _cells(self, tensor: _ggml.Tensor) -> None:
        cells = _flat(_ggml.source(tensor, 1))
        if self._new_cells is not None and not np.array_equal(cells, self._new_cells):
            # layers with a window have a cache of their own, which has begun to reuse its cells
            self._visible = np.array([], np.int64)
        self._new_cells = cells

    def _scores(self, tensor: _ggml.Tensor, tap: str, key_tap: str) -> None:
        self._cache(key_tap, _ggml.source(tensor, 0))
        cells = self._visible_cells()
        if cells is not None and self._wants(tap):
            # unscaled as yet; copied now because the softmax may be computed in place
            self._keep(tap, _ggml.read(tensor)[0][:, :, cells])

    def _softmax(self, tensor: _ggml.Tensor, tap: str, score_tap: str) -> None:
        cells = self._visible_cells()
        if cells is None:
            return
        self._keep(tap, _ggml.read(tensor)[0][:, :, cells])
        if score_tap in self.taps:
            scale = float(np.array(tensor.op_params[0], np.int32).view(np.float32))
            if scale > 0 and math.frexp(scale)[0] == 0.5:
                self.taps[score_tap] *= np.float32(scale)
            else:
                # not a power of two: the product would carry a rounding that is ours
                del self.taps[score_tap]
                self._session.note(f"attn_scores left out: llama.cpp holds them unscaled, and {scale} is inexact")

    def _values(self, tensor: _ggml.Tensor, tap: str) -> None:
        self._cache(tap, _ggml.source(tensor, 0), transposed=True)

    def _flash(self, tensor: _ggml.Tensor, key_tap: str, value_tap: str) -> None:
        self.flash = True
        self._cache(key_tap, _ggml.source(tensor, 1))
        self._cache(value_tap, _ggml.source(tensor, 2))

    def _cache(self, tap: str, tensor: _ggml.Tensor, transposed: bool = False) -> None:
        cells = self._visible_cells()
        if cells is None or not self._wants(tap):
            return
        name = _ggml.type_name(tensor.type)
        if name not in ("f16", "f32"):
            self._session.note(f"{tap.rsplit('.', 1)[1]} left out: the cache holds {name}")
            return
        held = _ggml.read(tensor)[0]
        # [Hkv, D, cells] or [Hkv, cells, D] -> [cells, Hkv, D]
        held = held.transpose(2, 0, 1) if transposed else held.transpose(1, 0, 2)
        self._keep(tap, held[cells])

    def _visible_cells(self) -> Optional[np.ndarray]:
        """Cells of positions 0, 1, … up to this step's last: the cache's own order may be any."""
        if self._visible is None:
            known = self.positions is not None and self._new_cells is not None
            if known and len(self.positions) == len(self._new_cells):
                first, last = int(self.positions.min()), int(self.positions.max())
                for position in [position for position in self._cell_of if position >= first]:
                    del self._cell_of[position]
                self._cell_of.update(zip(self.positions.tolist(), self._new_cells.tolist()))
                cells = [self._cell_of.get(position, -1) for position in range(last + 1)]
                self._visible = np.array(cells if min(cells) >= 0 else [], np.int64)
            else:
                self._visible = np.array([], np.int64)
        if not self._visible.size:
            self._session.note("cache, scores and probabilities left out where a key's place in the cache is unknown")
            return None
        return self._visible

    # ---- the end of the evaluation ----------------------------------------------------------------------------

    def finish(self, heads: int, head_size: int, interleaved: bool) -> dict[str, Any]:
        """The taps in the trace's shapes and in the order of rows that the model's own checkpoint has."""
        rows = len(self.token_ids)
        out = self._out_rows
        trailing = out is None or np.array_equal(out, np.arange(rows - len(out), rows))
        taps: dict[str, Any] = {}
        for tap, value in self.taps.items():
            last = tap.rsplit(".", 1)[-1]
            if last not in ("k_cache", "v_cache", "attn_scores", "attn_probs") and value.shape[0] != rows:
                if tap not in _LAST_ROWS or not trailing:
                    self._session.note(
                        "taps of the last layer left out where llama.cpp computed only the rows whose logits were "
                        "asked for; load the model with logits_all=True to see them"
                    )
                    continue
            if last == "attn_heads":
                value = value.reshape(rows, heads, -1)
            if interleaved and last in ("q_rope", "k_rope", "k_cache"):
                value = _half_split(value)
            taps[tap] = value
        if interleaved:
            for tap in [tap for tap in taps if tap.endswith(("q_proj", "k_proj"))]:
                taps[tap] = _half_split(taps[tap].reshape(rows, -1, head_size)).reshape(rows, -1)
        return taps


def _half_split(value: np.ndarray) -> np.ndarray:
    """Undoes the row order of llama files, per head: stored row 2i+s is row s·(D/2)+i of the checkpoint."""
    size = value.shape[-1]
    pairs = value.reshape(*value.shape[:-1], size // 2, 2)
    return np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(value.shape)


def _flat(tensor: Optional[_ggml.Tensor]) -> np.ndarray:
    return np.array(_ggml.read(tensor), copy=True).reshape(-1).astype(np.int64)
