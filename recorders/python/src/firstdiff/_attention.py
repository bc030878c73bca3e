"""Sees what goes into and comes out of transformers' attention functions, for chosen modules only.

transformers looks the function up by `config._attn_implementation` at each call. The entry is wrapped under its own
name, so the configuration, and with it every mask and every branch the model takes, stays exactly as it was.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional

import torch
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# id of an attention module -> who watches it. Recorders of several models may be open at once, and end in any order.
_watchers: dict[int, Callable[..., Any]] = {}
_open: dict[str, int] = {}
_shadowed: dict[str, tuple[bool, Optional[Callable[..., Any]]]] = {}


def watch(implementation: str, modules: list[torch.nn.Module], watcher: Callable[..., Any]) -> Callable[[], None]:
    """Calls `watcher(inner, module, query, key, value, *rest)` in place of `inner` for these modules; returns the undo."""
    if not _open.get(implementation):
        local = implementation in ALL_ATTENTION_FUNCTIONS._local_mapping
        _shadowed[implementation] = (local, ALL_ATTENTION_FUNCTIONS.get(implementation))
        ALL_ATTENTION_FUNCTIONS[implementation] = _dispatcher(implementation)
    _open[implementation] = _open.get(implementation, 0) + 1
    for module in modules:
        _watchers[id(module)] = watcher

    def undo() -> None:
        for module in modules:
            if _watchers.get(id(module)) is watcher:
                del _watchers[id(module)]
        _open[implementation] -= 1
        if not _open[implementation]:
            local, original = _shadowed.pop(implementation)
            if local:
                ALL_ATTENTION_FUNCTIONS[implementation] = original
            else:
                del ALL_ATTENTION_FUNCTIONS[implementation]

    return undo


def _dispatcher(implementation: str) -> Callable[..., Any]:
    original = _shadowed[implementation][1]

    def attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # eager is not in the registry: each model file brings its own, looked up at the call as the model would
        inner = original or sys.modules[type(module).__module__].eager_attention_forward
        watcher = _watchers.get(id(module))
        if watcher is None:
            return inner(module, *args, **kwargs)
        return watcher(inner, module, *args, **kwargs)

    return attention


_MATMUL = {"matmul", "__matmul__", "bmm", "baddbmm"}
_SCALE = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__", "true_divide"}


class ScoreWatcher(TorchFunctionMode):
    """Catches query times keys, after any scaling and before whatever uses it next, while it is in force.

    An engine that forgets to scale is seen without scale: `scores` is what the engine held, not what it should hold.
    """

    def __init__(self, query: torch.Tensor, copy: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.scores: Any = None
        self._copy = copy
        self._queries = [query]  # the query, and what scaling made of it
        self._current: Optional[torch.Tensor] = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        used = self._current is not None and any(arg is self._current for arg in args)
        if used and name not in _SCALE:
            self._settle()  # before the call: it may write in place
            used = False
        result = func(*args, **(kwargs or {}))
        if used:
            self._current = result
        elif self.scores is None and self._current is None and args:
            if name in _SCALE and self._is_query(args[0]):
                self._queries.append(result)
            elif name in _MATMUL and self._is_query(args[0]):
                self._current = result
        return result

    def _is_query(self, value: Any) -> bool:
        return any(value is query for query in self._queries)

    def _settle(self) -> None:
        if self._current is not None and self.scores is None:
            scores, self._current = self._current, None
            self.scores = self._copy(scores)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            self._settle()
