"""What one call of `generate` decides: how it is called, and which tokens it chooses."""

from __future__ import annotations

import threading
from typing import Any, Optional

import torch

from ._session import Refused


def setting(model: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """A generation setting where `generate` looks for it: keyword, configuration given, the model's own."""
    if name in kwargs:
        return kwargs[name]
    given = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
    value = getattr(given, name, None)
    return getattr(getattr(model, "generation_config", None), name, None) if value is None else value


class Generation:
    """A running call of `generate`. Refuses ways to generate that a trace cannot tell."""

    def __init__(self, model: Any, args: tuple, kwargs: dict) -> None:
        get = lambda name: setting(model, args, kwargs, name)
        if (get("num_beams") or 1) > 1:
            raise Refused(
                "beam search copies the keys of one sequence over those of another, which is not recorded; "
                "record with num_beams=1"
            )
        prompt = kwargs.get("inputs", kwargs.get("input_ids", args[0] if args else None))
        self.prompt_length = prompt.shape[1] if isinstance(prompt, torch.Tensor) and prompt.dim() == 2 else None
        self._stops = _ids(get("eos_token_id"))
        self._pads = _ids(get("pad_token_id")) or self._stops
        self._further_stops = bool(get("stop_strings") or kwargs.get("stopping_criteria"))
        self._finished: list[bool] = []

    def chosen(self, tokens: list[int]) -> list[int]:
        """The tokens chosen for each sequence; -1 where one is only filled up because others go on."""
        if len(tokens) == 1:
            return tokens
        if len(self._finished) != len(tokens):
            self._finished = [False] * len(tokens)
        result = []
        for row, token in enumerate(tokens):
            filled = self._finished[row] or (self._further_stops and token in self._pads)
            result.append(-1 if filled else token)
            self._finished[row] = filled or token in self._stops
        return result


def _ids(value: Any) -> set[int]:
    if value is None:
        return set()
    return set(torch.as_tensor(value).flatten().tolist())


class Turn:
    """One thread at a time: whose call of the model, or of `generate`, is running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: Optional[int] = None
        self._holds: list[str] = []

    def take(self, what: str) -> bool:
        """False while another thread's call is running. One call of the model does not contain another."""
        me = threading.get_ident()
        with self._lock:
            if self._owner != me:
                if self._holds and any(thread.ident == self._owner for thread in threading.enumerate()):
                    return False
                self._owner, self._holds = me, []
            if self._holds[-1:] != [what]:  # else what was interrupted before has never ended
                self._holds.append(what)
            return True

    def give(self, what: str) -> None:
        """Ends what `take` began, and what was interrupted inside it."""
        with self._lock:
            if self._owner == threading.get_ident() and what in self._holds:
                del self._holds[len(self._holds) - 1 - self._holds[::-1].index(what) :]
