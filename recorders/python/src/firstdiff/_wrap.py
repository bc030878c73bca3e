"""Puts functions around an entry of a table of functions, any number of them, and takes them away in any order.

The table may be an object's attributes (`vars(object)`), a module's globals or a plain registry. Several recorders may
be open on one model and end in any order: each takes away its own function, and the last one leaves the table as it was.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, MutableMapping

_MARK = "_firstdiff_chain"


def around(
    table: MutableMapping[str, Any], name: str, original: Callable[..., Any], wrapper: Callable[..., Any]
) -> Callable[[], None]:
    """Calls `wrapper(inner, *args, **kwargs)` in place of `original`, which `name` stands for; returns the undo.

    The table need not hold `name` itself: a method is found on the class, and is there again after the undo.
    """
    chain = table.get(name)
    mark = getattr(chain, _MARK, None)
    if mark is None or mark.chain is not chain:  # functools.wraps copies the mark of what it wraps
        mark = _Mark(table, name, original)
        table[name] = mark.chain
    mark.wrappers.append(wrapper)

    def undo() -> None:
        mark.take_away(wrapper)

    return undo


class _Mark:
    def __init__(self, table: MutableMapping[str, Any], name: str, original: Callable[..., Any]) -> None:
        self.wrappers: list[Callable[..., Any]] = []
        self._table, self._name = table, name
        self._own = name in table
        self._before = table.get(name)

        @functools.wraps(original)
        def chain(*args: Any, **kwargs: Any) -> Any:
            inner = original
            for wrapper in tuple(self.wrappers):
                inner = functools.partial(wrapper, inner)
            return inner(*args, **kwargs)

        self.chain = chain
        setattr(chain, _MARK, self)

    def take_away(self, wrapper: Callable[..., Any]) -> None:
        self.wrappers[:] = [other for other in self.wrappers if other is not wrapper]
        if self.wrappers or self._table.get(self._name) is not self.chain:
            return  # others are still here, or somebody wrapped this one: it goes on as a mere passage
        if self._own:
            self._table[self._name] = self._before
        else:
            del self._table[self._name]
