"""Sees what goes into and comes out of transformers' attention functions, for chosen modules only.

transformers looks the function up at each call: by `config._attn_implementation` in a registry, or, for eager attention,
in the model's own file. The entry is wrapped under its own name, so the configuration, and with it every mask and every
branch the model takes, stays exactly as it was.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, Callable, MutableMapping, Optional

import torch
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ._wrap import around


def watch(implementation: str, modules: list[torch.nn.Module], watcher: Callable[..., Any]) -> Callable[[], None]:
    """Calls `watcher(inner, module, query, key, value, *rest)` in place of `inner` for these modules; returns the undo."""
    watched = {id(module) for module in modules}

    def attention(inner: Callable[..., Any], module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(module) in watched:
            return watcher(inner, module, *args, **kwargs)
        return inner(module, *args, **kwargs)

    undos = [around(*place, attention) for place in _places(implementation, modules)]

    def undo() -> None:
        for one in undos:
            one()

    return undo


def _places(
    implementation: str, modules: list[torch.nn.Module]
) -> list[tuple[MutableMapping[str, Any], str, Callable[..., Any]]]:
    """Where the modules find their attention function: table, name, function."""
    registered = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if registered is not None:
        return [(ALL_ATTENTION_FUNCTIONS._local_mapping, implementation, registered)]
    # eager: each model file brings its own, which its modules find among their globals
    files = {id(table): table for table in map(_globals, modules)}
    return [(table, "eager_attention_forward", table["eager_attention_forward"]) for table in files.values()]


def _globals(module: torch.nn.Module) -> dict[str, Any]:
    """Of the file in which the module finds its attention: its forward's own, or, of one replaced, its class's."""
    files = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__ if kind.__module__ in sys.modules]
    for table in (inspect.unwrap(type(module).forward).__globals__, *files):
        if "eager_attention_forward" in table:
            return table
    raise LookupError(f"{type(module).__name__} has no eager attention to watch")


_MATMUL = {"matmul", "__matmul__", "bmm", "baddbmm"}
_SCALE = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__", "true_divide"}


class ProductWatcher(TorchFunctionMode):
    """Catches the first product with a weight, the moment it is made, while it is in force."""

    def __init__(self, take: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self._take: Optional[Callable[[torch.Tensor], Any]] = take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._take is not None and getattr(func, "__name__", "") == "linear":
            take, self._take = self._take, None
            take(result)
        return result


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
