"""Which taps of which layers and steps are recorded, how large the trace will be, and where it ends.

Every recorder takes the same four options, and hands them to a `Selection`:

    layers      "0-3,7", a number or a collection of numbers; None for all
    taps        patterns with `*`: `layers.*.out`, or the tap's own name, `out`, `*_norm`; None for all
    steps       "0-3,7", "10-" or numbers, counted from 0 as in the trace; None for all
    max_bytes   the trace grows no larger: 500_000_000, "500MB", "2GB"; None for no limit

A step that is not asked for is written with its tokens alone, so that the reader knows what came before the ones that
are. After the last one that is asked for nothing is written any more.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from typing import Iterable, Mapping, Optional, Union

from ._taps import split, taps as known_taps

Numbers = Union[str, int, Iterable[int], None]

_RANGE = re.compile(r"\s*(\d+)\s*(-\s*(\d*))?\s*")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
# what belongs to recorded tensors and is no tap of the list: never the reason for an error
_COMPANIONS = ("k_scale", "v_scale", "key_sequence", "key_position", "logits_rows")


class Selection:
    """What is to be recorded. Raises ValueError, with what to write instead, where an option says nothing that can be."""

    def __init__(
        self,
        layers: Numbers = None,
        taps: Union[str, Iterable[str], None] = None,
        steps: Numbers = None,
        max_bytes: Union[str, int, None] = None,
    ) -> None:
        self._layers = None if layers is None else _Ranges("layers", layers)
        self._steps = None if steps is None else _Ranges("steps", steps)
        self._patterns = None if taps is None else _patterns(taps)
        self.max_bytes: Optional[int] = None if max_bytes is None else parse_size(max_bytes)
        self._known: dict[str, bool] = {}  # no lru_cache: workers of some engines are handed a pickled selection

    def _is_wanted(self, tap: str) -> bool:
        layer, name = split(tap)
        if layer is not None and self._layers is not None and layer not in self._layers:
            return False
        return self._patterns is None or any(self._patterns.match(text) for text in (tap, name))

    def wants(self, tap: str, step: Optional[int] = None) -> bool:
        """Whether a tap, by its full name (`layers.3.q_rope`, `logits`), is recorded: in this step, or in any."""
        wanted = self._known.get(tap)
        if wanted is None:
            wanted = self._known[tap] = self._is_wanted(tap)
        return wanted and (step is None or self.wants_step(step))

    def wants_any(self, taps: Iterable[str], step: Optional[int] = None) -> bool:
        """Whether at least one of these is."""
        return any(self.wants(tap, step) for tap in taps)

    def wants_step(self, step: int) -> bool:
        """Whether anything but tokens is recorded in this step."""
        return self._steps is None or step in self._steps

    def is_past(self, step: int) -> bool:
        """Whether neither this step nor any later one was asked for: recording ends before it."""
        return self._steps is not None and self._steps.end is not None and step >= self._steps.end

    def has_room(self, written: int, more: int) -> bool:
        """Whether a trace of so many bytes may grow by so many."""
        return self.max_bytes is None or written + more <= self.max_bytes

    def estimate(
        self,
        names: Iterable[str],
        sizes: Mapping[str, int],
        layers: int,
        tokens: int,
        past: int = 0,
        element: int = 4,
        logits: Optional[int] = None,
    ) -> int:
        """Bytes of one step of `tokens` tokens after `past` ones.

        `names` are the taps that the recorder takes, without `layers.N.`; `sizes` says what the letters of their axes stand
        for (d, H, Hkv, D, F, V, …); `element` is the size of an element; `logits` is of how many tokens the engine
        makes logits, None for all. Taps of unknown size are left out.
        """
        sizes = {**sizes, "T": tokens, "K": past + tokens}
        total = 0
        for name in names:
            tap = known_taps()[name]
            elements = tap.elements(sizes)
            if elements is not None:
                if name == "logits" and logits is not None:
                    elements = elements // max(tokens, 1) * min(logits, tokens)
                copies = range(layers) if tap.place == "layer" else [None]
                full = (name if layer is None else f"layers.{layer}.{name}" for layer in copies)
                total += sum(map(self.wants, full)) * elements * element
        return total

    def announce(
        self,
        names: Iterable[str],
        sizes: Mapping[str, int],
        layers: int,
        *,
        element: int = 4,
        prompt: Optional[int] = None,
        new: Optional[int] = None,
        logits: Optional[int] = None,
    ) -> None:
        """Says on standard error how large the trace will be, before anything is recorded.

        `prompt` and `new` are how many tokens go in and are generated, where that is known.
        """
        names = list(names)
        layered = [name for name in names if known_taps()[name].place == "layer"]
        recorded = [n for n in range(layers) if any(self.wants(f"layers.{n}.{name}") for name in layered)]
        first = prompt or 64
        size = lambda tokens, past: self.estimate(names, sizes, layers, tokens, past, element, logits)
        if prompt is not None and new is not None:
            # the tokens of each call: the prompt, then one a time; the last token is not fed back
            calls = [(first, 0)] + [(1, first + n) for n in range(max(new - 1, 0))]
            total = sum(size(*call) for step, call in enumerate(calls) if self.wants_step(step))
            about = f"about {show_size(total)} for a prompt of {prompt} tokens and {new} generated"
        else:
            about = f"about {show_size(size(first, 0))} for a prompt of {first} tokens, {show_size(size(1, first))} for the token after it"
        limit = "" if self.max_bytes is None else f"; recording stops at {show_size(self.max_bytes)}"
        say(f"the trace will take {about} ({_count(len(recorded), 'layer')} of {layers}){limit}")


def say(text: str) -> None:
    """One line on standard error, which may be closed: that is no reason to stop."""
    try:
        print(f"firstdiff: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass


def show_size(size: float) -> str:
    """`1.5 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def parse_size(text: Union[str, int]) -> int:
    """Bytes: a number, or text such as `500MB`, `2 GB`."""
    found = _SIZE.fullmatch(str(text))
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size <= 0:
        raise ValueError(f"max_bytes must be a size such as 500000000, '500MB' or '2GB', not {text!r}")
    return size


class _Ranges:
    """Numbers, and ranges of them, of which the last may be open."""

    def __init__(self, option: str, given: Numbers) -> None:
        wrong = ValueError(f"{option} must be numbers from 0 and ranges, such as '0-3,7', not {given!r}")
        self._ranges: list[tuple[int, Optional[int]]] = []  # first, and the one after the last
        if isinstance(given, str):
            for part in given.split(","):
                found = _RANGE.fullmatch(part)
                if found is None:
                    raise wrong
                first = int(found[1])
                last = first if found[2] is None else int(found[3]) if found[3] else None
                if last is not None and last < first:
                    raise wrong
                self._ranges.append((first, None if last is None else last + 1))
        else:
            try:
                numbers = [given] if isinstance(given, int) else [int(number) for number in given or ()]
            except (TypeError, ValueError):
                raise wrong from None
            if not numbers or min(numbers) < 0:
                raise wrong
            self._ranges = [(number, number + 1) for number in sorted(set(numbers))]

    def __contains__(self, number: int) -> bool:
        return any(first <= number and (end is None or number < end) for first, end in self._ranges)

    @property
    def end(self) -> Optional[int]:
        """The number after the last; None where there is none."""
        ends = [end for _, end in self._ranges]
        return None if None in ends else max(end for end in ends if end is not None)


def _patterns(given: Union[str, Iterable[str]]) -> re.Pattern[str]:
    patterns = [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)
    for pattern in patterns:
        if not _names_a_tap(pattern):
            raise ValueError(
                f"no tap is called {pattern!r}; write names such as 'logits', 'q_rope' or 'layers.*.out' "
                "(docs/TRACE.md lists them)"
            )
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


def _names_a_tap(pattern: str) -> bool:
    own = re.sub(r"^layers\.[^.]+\.", "", pattern)
    names = (*known_taps(), *_COMPANIONS)
    return any(fnmatch.fnmatchcase(name, own) or fnmatch.fnmatchcase(f"layers.0.{name}", pattern) for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
