"""What every recorder shares: one pending step, where a trace ends, and never breaking the engine."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Optional, Union

from ._selection import Selection, say, show_size
from .trace import Array, TraceRefused, Writer, size_of


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

    def __init__(self, open_writer: Callable[[], Writer], selection: Optional[Selection] = None) -> None:
        self.writer: Optional[Writer] = None
        self.alive = True
        self._selection = selection or Selection()
        self._finished = False  # whether recording ended because everything that was asked for is there
        self._cut = False  # whether the trace ends before the run does for want of room
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
        _warn(f"{kept}; the engine goes on. Reason: {reason}")

    def note(self, text: str) -> None:
        """Remembers, once, something the trace leaves out and why; it goes into trace.json."""
        self._notes.setdefault(text)

    def warn_and_note(self, text: str) -> None:
        """The same, and says so now, once."""
        with self._failing:
            said = text in self._notes or not self.alive
            self._notes.setdefault(text)
        if not said:
            _warn(f"firstdiff: {text}")

    def write(self, step: Step, taps: Mapping[str, Array]) -> None:
        assert self.writer is not None
        if not self.alive or self._ends_before(taps):
            return
        self.writer.step(
            step.token_ids, taps, positions=step.positions, sequence=step.sequence, sampled=step.sampled
        )

    def _ends_before(self, taps: Mapping[str, Array]) -> bool:
        """Whether the next step has no place in the trace: it was not asked for, or is one too many."""
        if self._selection.is_past(self.writer.steps):
            self.finish()
            return True
        if self._selection.max_bytes is None:
            return False
        size = size_of(taps)
        if self._selection.has_room(self.writer.bytes, size):
            return False
        self._cut = True
        limit = f"max_bytes is {show_size(self._selection.max_bytes)}"
        if not self.writer.steps:
            self.fail(f"the first step takes {show_size(size)}, and {limit}; record fewer taps or layers")
        else:
            self.finish(
                f"recording stops after {self.writer.steps} steps ({show_size(self.writer.bytes)}): the next one takes "
                f"{show_size(size)}, and {limit}. The trace is valid; the engine goes on"
            )
        return True

    def finish(self, why: str = "") -> None:
        """Ends the recording as was asked for: not a failure."""
        with self._failing:
            if not self.alive:
                return
            self.alive = False
            self._finished = True
        if why:
            self.note(why)
            say(why)

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
        complete = complete and (self.alive or (self._finished and not self._cut))
        try:
            self.writer.close(complete=complete)
        except Exception as error:
            self.fail(error)


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RecorderWarning, stacklevel=3)
    except RecorderWarning:
        pass  # warnings turned into errors must not break the engine either
