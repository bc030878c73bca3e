"""The key/value cache of a call, by either of its names, and which sequences' tokens it holds.

A trace says of each row which sequence it belongs to, and a reader takes the sequence's earlier rows for its keys. So
what a cache holds must be what was recorded: where it is not, the recording ends with a word on why.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Mapping, Optional

import torch
from transformers import Cache

from ._forward import Forward
from ._session import Refused

NAMES = ("cache", "past_key_values")  # since transformers 5.24, and before


def given(arguments: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments, by name; None where there is none."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def returned(output: Any) -> Any:
    """The cache that a model's output carries; None where it carries none."""
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    name = next((name for name in NAMES if hasattr(output, name)), None)  # newer outputs answer to both
    return None if name is None else getattr(output, name)


def refuse_quantised(cache: Any) -> None:
    """A cache that rounds keys in blocks of its own is nothing that a trace can declare as yet."""
    layers = getattr(cache, "layers", None) or []
    kinds = {type(layer).__name__ for layer in layers if any("Quantized" in base.__name__ for base in type(layer).__mro__)}
    if kinds or "Quantized" in type(cache).__name__:
        kind = ", ".join(sorted(kinds)) or type(cache).__name__
        raise Refused(f"the key/value cache is quantised ({kind}), which a trace cannot declare yet; record with another cache")


@dataclass
class Held:
    """What a cache held at the end of the last recorded call; B rows of tokens, padding included."""

    sequences: list[int]  # of each of its rows
    positions: torch.Tensor  # [B, tokens]
    records: torch.Tensor  # [B, tokens]: a number for each token ever recorded
    last_keys: Optional[torch.Tensor]  # [B, …] of the last token, in the last layer


class Caches:
    """Which sequences each cache holds, and what the trace says of them so far."""

    def __init__(self) -> None:
        self._held: weakref.WeakKeyDictionary[Any, Held] = weakref.WeakKeyDictionary()
        self._trace: list[torch.Tensor] = []  # of each sequence, the records that a reader takes for its tokens
        self._recorded = 0

    def begin(self, call: Forward) -> None:
        """Numbers the rows of a call that is about to run; refuses one whose earlier keys the trace does not have."""
        records = torch.arange(self._recorded, self._recorded + call.positions.numel()).view(call.positions.shape)
        if call.past == 0:
            call.sequences = list(range(len(self._trace), len(self._trace) + call.batch))
            call.key_positions, call.records = call.positions, records
            _refuse_late_starts(call)
            return
        held = self._held.get(call.cache) or self._copied(call)
        if held is None:
            raise Refused(
                f"the key/value cache already holds {call.past} tokens that this recording did not see; "
                "record from the prompt's first token on, with an empty cache"
            )
        tokens = held.positions.shape[1]
        if call.past > tokens:
            raise Refused(
                f"the key/value cache holds {call.past} tokens, of which {tokens} were recorded: a call failed halfway, "
                "or something else wrote to the cache"
            )
        rows = _rows_now(call, held)
        call.sequences = [held.sequences[row] for row in rows]
        earlier = held.records[rows, : call.past]
        if any(not torch.equal(self._trace[n][: call.past], own) for n, own in zip(call.sequences, earlier)):
            raise Refused("the sequence went on in another copy of the key/value cache, and now goes on in the first one")
        call.key_positions = torch.cat((held.positions[rows, : call.past], call.positions), 1)
        call.records = torch.cat((earlier, records), 1)

    def end(self, call: Forward, cache: Any) -> None:
        """Remembers what the cache holds after a call that has run."""
        self._recorded += call.positions.numel()
        for number, records in zip(call.sequences, call.records):
            self._trace[number : number + 1] = [records]  # the next number is the list's length
        if cache is not None:
            last_keys = _last_keys(cache, call.visible)
            self._held[cache] = Held(call.sequences, call.key_positions, call.records, last_keys)

    def _copied(self, call: Forward) -> Optional[Held]:
        """The cache that this one is a copy of: prompts that begin alike are often computed once and copied."""
        now = _last_keys(call.cache, call.past)
        if now is None:
            return None
        same = lambda held: held.positions.shape == (call.batch, call.past) and _equal(held.last_keys, now)
        return next(filter(same, self._held.values()), None)


def _equal(one: Optional[torch.Tensor], other: torch.Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


def _refuse_late_starts(call: Forward) -> None:
    """Rows whose cache is empty must be at positions 0, 1, 2, …"""
    for row in range(call.batch):
        positions = call.positions[row]
        if call.rows is not None:
            positions = positions[call.rows[row]]
        if not torch.equal(positions, torch.arange(len(positions))):
            shown = ", ".join(map(str, positions[:4].tolist())) + (", …" if len(positions) > 4 else "")
            raise Refused(
                f"a sequence begins with an empty key/value cache at positions {shown} instead of 0, 1, …: earlier tokens "
                "were not recorded, padding is counted, or several prompts lie in one row"
            )


def _rows_now(call: Forward, held: Held) -> list[int]:
    """Which row of the cache each row was when it was last recorded: beams and batches change places between calls."""
    same = list(range(call.batch))
    if call.batch == len(held.sequences) == 1:
        return same
    before, now = held.last_keys, None
    if before is not None and call.past == held.positions.shape[1]:
        now = _last_keys(call.cache, call.past)
    if now is None or now.shape[1:] != before.shape[1:]:
        if call.batch != len(held.sequences):
            raise Refused(f"the key/value cache held {len(held.sequences)} sequences and now holds {call.batch}")
        return same
    rows = []
    for row in same:
        # a row that is like none of those before was not moved: what is wrong with it is the engine's, and recorded
        if row < len(before) and torch.equal(now[row], before[row]):
            rows.append(row)
        else:
            rows.append(next((other for other in range(len(before)) if torch.equal(now[row], before[other])), row))
    if len(set(rows)) < len(rows) or max(rows) >= len(before):
        raise Refused(
            "rows of the key/value cache were copied over others between two calls, as beam search does: "
            "which keys belong to which sequence is not recorded"
        )
    return rows


def _last_keys(cache: Any, tokens: int) -> Optional[torch.Tensor]:
    """The last token's keys in the deepest layer that shows them, which depend on all that came before."""
    for layer in reversed(getattr(cache, "layers", None) or []):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.dim() == 4 and keys.shape[2]:
            return keys[:, :, tokens - 1 if keys.shape[2] >= tokens else -1].detach().to("cpu", copy=True)
    return None
