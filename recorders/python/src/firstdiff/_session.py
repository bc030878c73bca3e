"""What every recorder shares: which taps are wanted, one pending step, and never breaking the engine."""

from __future__ import annotations

import fnmatch
import re
import threading
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Callable, Iterable, Mapping, Optional, Union

from .trace import Array, TraceRefused, Writer


class Selection:
    """The taps asked for: None for all, else globs such as `layers.*.out`."""

    def __init__(self, globs: Optional[Iterable[str]]) -> None:
        if isinstance(globs, str):
            globs = [globs]
        self._pattern = None if globs is None else re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")
        self.wants = lru_cache(maxsize=None)(self._wants)

    def _wants(self, tap: str) -> bool:
        return self._pattern is None or self._pattern.match(tap) is not None

    def wants_any(self, taps: Iterable[str]) -> bool:
        return any(self.wants(tap) for tap in taps)


class Refused(Exception):
    """What an engine does that a trace cannot tell, or that contradicts what was recorded; the text is for people."""


@dataclass
class Step:
    """One forward call while it runs."""

    token_ids: list[int]
    positions: list[int]
    sequence: Optional[list[int]] = None
    sampled: Union[int, list[int], None] = None
    taps: dict[str, Any] = field(default_factory=dict)


class RecorderWarning(UserWarning):
    """Recording stopped, or left something out; the engine goes on untouched."""


class Session:
    """A Writer that gives up quietly: the first failure is warned about once, and recording ends there."""

    def __init__(self, open_writer: Callable[[], Writer]) -> None:
        self.writer: Optional[Writer] = None
        self.alive = True
        self._failing = threading.Lock()
        self._notes: dict[str, None] = {}
        self.guard(lambda: setattr(self, "writer", open_writer()), but=TraceRefused)

    def guard(self, action: Callable[[], Any], but: Union[type, tuple] = ()) -> Any:
        """Runs `action` if recording is still on; any failure except `but` ends the recording."""
        if not self.alive:
            return None
        try:
            return action()
        except but:
            raise
        except Exception as error:  # whatever it is, it is ours and not the engine's
            self.fail(error)
            return None

    def fail(self, why: Union[Exception, str]) -> None:
        """Ends the recording with one warning; the steps on disk are whole and stay."""
        with self._failing:
            if not self.alive:
                return
            self.alive = False
        reason = str(why) if isinstance(why, (str, Refused)) else f"{type(why).__name__}: {why}"
        steps = self.writer.steps if self.writer else 0
        kept = f"firstdiff stopped recording after {steps} steps" if steps else "firstdiff recorded nothing, and leaves no trace"
        message = f"{kept}; the engine goes on. Reason: {reason}"
        try:
            warnings.warn(message, RecorderWarning, stacklevel=2)
        except RecorderWarning:
            pass  # warnings turned into errors must not break the engine either

    def note(self, text: str) -> None:
        """Remembers, once, something the trace leaves out and why; it goes into trace.json."""
        self._notes.setdefault(text)

    def write(self, step: Step, taps: Mapping[str, Array]) -> None:
        assert self.writer is not None
        self.writer.step(
            step.token_ids, taps, positions=step.positions, sequence=step.sequence, sampled=step.sampled
        )

    def close(self, *, complete: bool, nothing: str) -> None:
        """Ends the trace. Without a single step there is none, and `nothing` says what may be the reason."""
        if self.writer is None:
            return
        if not self.writer.steps:
            self.fail(nothing)
            try:
                self.writer.discard()
            except OSError:
                pass  # the warning stands, and so does "complete": false
            return
        if self._notes:
            self.writer.update(notes=list(self._notes))
        complete = complete and self.alive
        try:
            self.writer.close(complete=complete)
        except Exception as error:
            self.fail(error)
