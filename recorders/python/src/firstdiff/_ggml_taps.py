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

import math
import re
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Optional, Union

import numpy as np

from . import _ggml
from ._session import Session
from ._taps import INPUT_OF, split, tap_of

_WEIGHT = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_CACHE = re.compile(r"cache_([kv])_l(\d+)\b")
_NAMED = re.compile(r"(\w+)-(\d+)")

# which taps a node of an operation may be by its own name; other nodes of these operations bear the same names
_NAMED_TAPS = {
    "ADD": ("attn_resid", "out", "experts_out"),
    "ROPE": ("q_rope", "k_rope"),
    "SOFT_MAX": ("attn_probs", "router_scores"),
    "VIEW": ("router_topk",),
    "DIV": ("router_weights",),
}
# the taps of products and norms, which are told apart by their weight
_OF_WEIGHTS = {
    "MUL_MAT": ("q_proj", "k_proj", "v_proj", "attn_out", "gate_proj", "up_proj", "mlp_out", "router_logits"),
    "MUL": ("attn_norm", "q_norm", "k_norm", "mlp_norm", "attn_post_norm", "mlp_post_norm"),
}
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
        tap = _by_weight("MUL_MAT", first, "weight")
        if tap:
            given = INPUT_OF.get(split(tap)[1])
            return Node(_rows_kind(tap), (tap, tap.rsplit(".", 1)[0] + "." + given) if given else (tap,))
    if operation == "ADD" and (tap := _by_weight("MUL_MAT", second, "bias")):
        return Node(_rows_kind(tap), (tap,))
    if operation == "MUL":
        tap = "final_norm" if second == "output_norm.weight" else _by_weight("MUL", second, "weight")
        return Node(_rows_kind(tap), (tap,)) if tap else None
    if tap := _by_name(operation, name):
        layer, own = split(tap)
        if own == "attn_probs":
            return Node("softmax", (tap, f"layers.{layer}.attn_scores"))
        return Node("rotated" if operation == "ROPE" else "rows", (tap,))
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
    names = {tap for table in (_NAMED_TAPS, _OF_WEIGHTS) for listed in table.values() for tap in listed}
    names |= {INPUT_OF[tap] for tap in names & INPUT_OF.keys()}
    return sorted((names | {"embed", "k_cache", "v_cache", "attn_scores", "final_norm", "logits"}) - absent)


def _rows_kind(tap: str) -> str:
    """What its rows are: channels, heads, or heads side by side whose rotary pairs may be in another order."""
    own = split(tap)[1]
    return "heads" if own in ("q_norm", "k_norm") else "heads_in_rows" if own in ("q_proj", "k_proj") else "rows"


def _by_name(operation: str, name: str) -> Optional[str]:
    named = _NAMED.fullmatch(name)
    tap = tap_of(named[1], int(named[2])) if named else None
    return tap if tap and split(tap)[1] in _NAMED_TAPS.get(operation, ()) else None


def _by_weight(operation: str, name: str, kind: str) -> Optional[str]:
    weight = _WEIGHT.fullmatch(name)
    tap = tap_of(weight[2], int(weight[1])) if weight and weight[3] == kind else None
    return tap if tap and split(tap)[1] in _OF_WEIGHTS[operation] else None


class Shown(NamedTuple):
    """A node of the graph as it was first met: valid for as long as its `tensor` still has the `identity` that it had then."""

    tensor: Any
    identity: bytes
    node: Optional[Node]
    asked: Optional[bool]  # whether one of its taps is wanted; None where that is not all that decides
    taps: tuple[Optional[str], ...]  # None for one that is not wanted
    address: int
    sources: tuple[int, int, int]


def look(pointer: int, wants: Callable[[str], bool], weights: dict[int, set[str]]) -> Shown:
    """What the node at an address is. `weights` gets its weight's type, and the buffer that holds it."""
    sources = _ggml.sources(pointer)
    names = [_ggml.Tensor.from_address(one).name.decode() if one else "" for one in sources[:2]]
    tensor, operation = _ggml.Tensor.from_address(pointer), _ggml.operation(pointer)
    if operation.startswith("MUL_MAT") and names[0].endswith(".weight"):
        weight = _ggml.Tensor.from_address(sources[0])
        weights.setdefault(weight.type, set()).add(_ggml.buffer_name(weight))
    node, now = classify(operation, tensor.name.decode(), *names), _ggml.identity(pointer)
    taps = () if node is None else tuple(tap if wants(tap) else None for tap in node.taps)
    asked = any(taps) if node is None or (node.taps and node.kind != "tokens") else None
    return Shown(now, now.raw, node, asked, taps, pointer, sources)


class Evaluation:
    """One evaluation of the graph: what was taken from its nodes so far."""

    def __init__(
        self,
        wanted: bool,
        session: Session,
        cell_of: dict[int, int],
        read: Callable[[int], np.ndarray],
        interleaved_heads: Optional[int],
    ) -> None:
        self.token_ids: Optional[np.ndarray] = None
        self.positions: Optional[np.ndarray] = None
        self.taps: dict[str, np.ndarray] = {}
        self._wanted = wanted  # whether anything but tokens is recorded
        self._session = session
        self._cell_of = cell_of  # position -> cell of the KV cache; outlives the step
        self._read = read
        self._interleaved = interleaved_heads  # channels of a head, where rotary pairs lie side by side
        self._new_cells: Optional[np.ndarray] = None
        self._out_rows: Optional[np.ndarray] = None
        self._visible: Union[np.ndarray, slice, None] = None

    def take(self, shown: Shown) -> None:
        _TAKES[shown.node.kind](self, shown, *shown.taps)

    # ---- nodes ------------------------------------------------------------------------------------------------

    def _keep(self, tap: Optional[str], value: np.ndarray) -> None:
        if tap is not None:
            turned = self._interleaved is not None and tap.endswith(("q_rope", "k_rope", "k_cache"))
            self.taps[tap] = _half_split(value) if turned else value.copy()

    def _flat(self, pointer: int) -> np.ndarray:
        return np.array(self._read(pointer), copy=True).reshape(-1).astype(np.int64)

    def _tokens(self, shown: Shown, tap: Optional[str]) -> None:
        self.token_ids = self._flat(shown.sources[1])
        if self._wanted and tap is not None:
            self._keep(tap, self._read(shown.address)[0, 0])

    def _kept_rows(self, shown: Shown) -> None:
        self._out_rows = self._flat(shown.sources[1])

    def _rows(self, shown: Shown, tap: Optional[str], input_tap: Optional[str] = None) -> None:
        if tap is not None:
            value = self._read(shown.address)[0]
            self.taps[tap] = value[0].copy() if value.shape[0] == 1 else value.copy()
        if input_tap is not None:
            self.taps[input_tap] = self._read(shown.sources[1])[0, 0].copy()

    def _heads(self, shown: Shown, tap: Optional[str]) -> None:
        self._keep(tap, self._read(shown.address)[0])

    def _heads_in_rows(self, shown: Shown, tap: str) -> None:
        value = self._read(shown.address)[0, 0]
        if self._interleaved is None:
            self.taps[tap] = value.copy()
        else:
            self.taps[tap] = _half_split(value.reshape(len(value), -1, self._interleaved)).reshape(value.shape)

    def _rotated(self, shown: Shown, tap: str) -> None:
        self._keep(tap, self._read(shown.address)[0])

    def _cells(self, shown: Shown) -> None:
        cells = self._flat(shown.sources[1])
        if self._new_cells is not None and not np.array_equal(cells, self._new_cells):
            # layers with a window have a cache of their own, which has begun to reuse its cells
            self._visible = np.array([], np.int64)
        self._new_cells = cells

    def _scores(self, shown: Shown, tap: Optional[str], key_tap: Optional[str]) -> None:
        self._cache(key_tap, shown.sources[0])
        if tap is not None and (cells := self.visible_cells()) is not None:
            # unscaled as yet; copied now because the softmax may be computed in place
            self._keep(tap, self._read(shown.address)[0][:, :, cells])

    def _softmax(self, shown: Shown, tap: Optional[str], score_tap: Optional[str]) -> None:
        cells = self.visible_cells()
        if cells is None:
            return
        self._keep(tap, self._read(shown.address)[0][:, :, cells])
        if score_tap is not None and score_tap in self.taps:
            first = _ggml.Tensor.from_address(shown.address).op_params[0]
            scale = float(np.array(first, np.int32).view(np.float32))
            if scale > 0 and math.frexp(scale)[0] == 0.5:
                self.taps[score_tap] *= np.float32(scale)
            else:
                # not a power of two: the product would carry a rounding that is ours
                del self.taps[score_tap]
                self._session.note(f"attn_scores left out: llama.cpp holds them unscaled, and {scale} is inexact")

    def _values(self, shown: Shown, tap: Optional[str]) -> None:
        self._cache(tap, shown.sources[0], transposed=True)

    def _flash(self, shown: Shown, key_tap: Optional[str], value_tap: Optional[str]) -> None:
        self._cache(key_tap, shown.sources[1])
        self._cache(value_tap, shown.sources[2])

    def _cache(self, tap: Optional[str], pointer: int, transposed: bool = False) -> None:
        if tap is None or (cells := self.visible_cells()) is None:
            return
        name = _ggml.type_name(_ggml.Tensor.from_address(pointer).type)
        if name not in ("f16", "f32"):
            self._session.note(f"{tap.rsplit('.', 1)[1]} left out: the cache holds {name}")
            return
        held = self._read(pointer)[0]
        # [Hkv, D, cells] or [Hkv, cells, D] -> [cells, Hkv, D]
        held = held.transpose(2, 0, 1) if transposed else held.transpose(1, 0, 2)
        self._keep(tap, held[cells])

    def visible_cells(self) -> Union[np.ndarray, slice, None]:
        """Cells of positions 0, 1, … up to this step's last: the cache's own order may be any."""
        if self._visible is None:
            self._visible = np.array([], np.int64)
            known = self.positions is not None and self._new_cells is not None
            if known and len(self.positions) == len(self._new_cells):
                first, last = int(self.positions.min()), int(self.positions.max())
                for position in [position for position in self._cell_of if position >= first]:
                    del self._cell_of[position]
                self._cell_of.update(zip(self.positions.tolist(), self._new_cells.tolist()))
                cells = np.array([self._cell_of.get(position, -1) for position in range(last + 1)], np.int64)
                if np.array_equal(cells, np.arange(last + 1)):
                    self._visible = slice(last + 1)  # nearly always; a slice needs no copy of its own
                elif cells.min() >= 0:
                    self._visible = cells
        if isinstance(self._visible, np.ndarray) and not self._visible.size:
            self._session.note("cache, scores and probabilities left out where a key's place in the cache is unknown")
            return None
        return self._visible

    # ---- the end of the evaluation ----------------------------------------------------------------------------

    def finish(self, heads: int) -> dict[str, Any]:
        """The taps in the trace's shapes."""
        if self._new_cells is not None:
            self.visible_cells()  # also where nothing was read from them: a later step's keys lie in them
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
            taps[tap] = value
        return taps


_TAKES = {name[1:]: method for name, method in vars(Evaluation).items() if name.startswith("_") and callable(method)}


def _half_split(value: np.ndarray) -> np.ndarray:
    """A copy in the order of rows that the checkpoint has: a llama file's row 2i+s of a head is row s·(D/2)+i of it."""
    size = value.shape[-1]
    pairs = value.reshape(*value.shape[:-1], size // 2, 2)
    return np.array(pairs.swapaxes(-1, -2), order="C", copy=True).reshape(value.shape)
