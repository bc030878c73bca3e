"""What a recorder is, whatever its engine: `with Recorder(model, "my.trace"): …`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Callable, Iterable, Mapping, Optional, Type, TypeVar, Union

from . import __version__
from ._selection import Numbers, Selection
from ._session import Session, Step
from .trace import Writer

_Self = TypeVar("_Self", bound="BaseRecorder")


class BaseRecorder(ABC):
    """Records an engine's calls from `attach` to `close`, which a `with` block calls.

    `layers`, `taps`, `steps` and `max_bytes` say what is recorded and how large the trace may become; `_selection` says how they
    are written. `overwrite=True` replaces an older trace.
    """

    producer: str  # as trace.json names it
    nothing: str  # what may be the reason if the engine did nothing that could be recorded

    def __init__(
        self,
        path: Any,
        *,
        layers: Numbers = None,
        taps: Union[str, Iterable[str], None] = None,
        steps: Numbers = None,
        max_bytes: Union[str, int, None] = None,
        overwrite: bool = False,
    ) -> None:
        self.selection = Selection(layers, taps, steps, max_bytes)
        self.wants = self.selection.wants
        self.wants_any = self.selection.wants_any
        self.session: Session
        self.prompt: Optional[int] = None  # tokens that will go in, and that will be generated, where that is known
        self.new: Optional[int] = None
        self._path, self._overwrite = path, overwrite
        self._undo: list[Callable[[], Any]] = []

    # ---- what an engine's recorder fills in -------------------------------------------------------------------

    @abstractmethod
    def _describe(self) -> Mapping[str, Any]:
        """What trace.json says of the run, before it begins."""

    @abstractmethod
    def _attach(self) -> None:
        """Begins to watch the engine; `_undo` gets what takes it back."""

    @abstractmethod
    def _announce(self) -> None:
        """Says how large the trace will be."""

    def _detach(self) -> None:
        """Leaves the engine as it was."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _last(self) -> None:
        """Writes what is pending, once the engine is as it was."""

    # ---- what people use --------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps on disk so far."""
        return self.session.writer.steps if self.session.writer else 0

    def attach(self) -> None:
        """Begins the trace. Raises TraceRefused where its folder cannot be used; after that nothing is ever raised."""
        producer = {"name": self.producer, "version": __version__}
        self.session = Session(
            lambda: Writer(self._path, producer=producer, overwrite=self._overwrite, **self._describe()), self.selection
        )
        self.session.guard(self._attach)
        if self.session.alive:
            self.session.guard(self._announce)
        else:
            self._detach()

    def close(self, complete: bool = True) -> None:
        """Leaves the engine as it was and ends the trace, which says whether the run was recorded to its end."""
        self._detach()
        self.session.guard(self._last)
        self.session.close(complete=complete, nothing=self.nothing)

    def __enter__(self: _Self) -> _Self:
        self.attach()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close(kind is None)


class StepRecorder(BaseRecorder):
    """A recorder whose steps wait for the token that is chosen after them."""

    def __init__(self, path: Any, **selection: Any) -> None:
        super().__init__(path, **selection)
        self._pending: Optional[Step] = None

    def sampled(self, token: int) -> None:
        """Says which token was chosen after the last call. Without it the next call's token is taken for it, where it fits."""
        if self._pending is not None:
            self._pending.sampled = int(token)

    def _number(self) -> int:
        """The number of the step that begins now."""
        return self.steps + (self._pending is not None)

    def _add(self, step: Step) -> None:
        """Writes the step before; this one waits."""
        self._flush()
        self._pending = step

    def _flush(self) -> None:
        step, self._pending = self._pending, None
        if step is not None:
            self.session.write(step, step.taps)

    def _last(self) -> None:
        self._flush()
