"""Reads one call of a transformers model: which tokens at which positions, and which rows and keys are padding."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

import torch


@dataclass
class Forward:
    """One call. Taps hold only real rows: B sequences of T tokens become one list of rows, padding left out."""

    token_ids: torch.Tensor  # [B, T]
    positions: torch.Tensor  # [B, T]
    past: int  # tokens in the cache before the call, padding included
    cache: Any
    real: Optional[torch.Tensor] = None  # [B, past + T] bool: which keys are no padding; None: all
    logits_to_keep: Any = 0  # as transformers takes it: the last so many tokens, or which ones
    sequences: list[int] = field(default_factory=list)  # of each row of the batch
    key_positions: Optional[torch.Tensor] = None  # [B, past + T]
    records: Optional[torch.Tensor] = None  # [B, past + T]: see Caches
    sampled: Optional[list[int]] = None  # of each row of the batch, -1 for none
    wanted: bool = True  # whether its taps are asked for, beside its tokens
    taps: dict[str, torch.Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)

    @property
    def rows(self) -> Optional[torch.Tensor]:
        """[B, T] bool: which tokens are no padding; None: all."""
        return None if self.real is None else self.real[:, self.past :]

    @property
    def batch(self) -> int:
        return self.token_ids.shape[0]

    @property
    def tokens(self) -> int:
        return self.token_ids.shape[1]

    @property
    def visible(self) -> int:
        """Keys the last token may see; a static cache is longer than that."""
        return self.past + self.tokens

    def continues(self, before: "Forward") -> bool:
        """Whether this call is fed the one token chosen after `before`, in each sequence."""
        follows = self.cache is before.cache and self.past == before.past + before.tokens
        return follows and self.tokens == 1 and self.batch == before.batch

    def kept_rows(self, value: torch.Tensor) -> torch.Tensor:
        """[B, T, …] -> [rows, …]"""
        value = value.expand(self.batch, *value.shape[1:]).flatten(0, 1)
        return value if self.rows is None else value[self.rows.flatten().to(value.device)]

    def kept_queries(self, value: torch.Tensor) -> torch.Tensor:
        """[H, T, …] of one sequence -> [H, rows, …]"""
        return value if self.rows is None else value[:, self.rows[0].to(value.device)]

    def visible_keys(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        """Of one sequence: the keys that are no padding. A window that has dropped keys has the last ones."""
        held = min(value.shape[axis], self.visible)
        value = value.narrow(axis, 0, held)
        if self.real is None:
            return value
        return value.index_select(axis, self.real[0, -held:].nonzero().flatten().to(value.device))

    def all_keys(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, Hkv, keys, D] -> [K, Hkv, D], sequence after sequence, and each key's sequence and position."""
        held = min(value.shape[2], self.visible)
        value = value[:, :, :held].transpose(1, 2).flatten(0, 1)
        numbers = torch.tensor(self.sequences)[:, None].expand(-1, held).flatten()
        positions = self.key_positions[:, -held:].flatten()
        if self.real is None:
            return value, numbers, positions
        kept = self.real[:, -held:].flatten()
        return value[kept.to(value.device)], numbers[kept], positions[kept]

    def kept_logits(self, logits: torch.Tensor) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """[B, kept tokens, V] -> [rows, V], and which rows of the step they are; None where that cannot be told."""
        asked = self.logits_to_keep
        if isinstance(asked, torch.Tensor):
            asked = asked.detach().cpu()
            if asked.dim() == 1 and asked.dtype == torch.bool:
                asked = asked.nonzero().flatten()
            if asked.dim() not in (1, 2) or asked.is_floating_point() or asked.dtype == torch.bool:
                return None
            columns = asked.remainder(self.tokens).expand(self.batch, -1)
        else:
            columns = torch.arange(self.tokens)[slice(-asked, None)].expand(self.batch, -1)
        if logits.dim() != 3 or logits.shape[:2] != columns.shape:
            return None
        rows = torch.ones(self.batch, self.tokens, dtype=torch.bool) if self.rows is None else self.rows
        numbers = (rows.flatten().cumsum(0) - 1).view(self.batch, self.tokens)
        real = rows.gather(1, columns)
        return logits[real.to(logits.device)], numbers.gather(1, columns)[real]


def is_one_sequence(call: Forward) -> bool:
    return call.batch == 1


def by_name(module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments under the names that the module's own `forward` gives them."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return {**dict(zip(names, args)), **kwargs}


def read_call(named: Mapping[str, Any], cache: Any) -> Optional[Forward]:
    """The call's tokens, or None when it is not given token ids."""
    token_ids = named.get("input_ids")
    if token_ids is None:
        return None
    token_ids = token_ids.detach().to("cpu", torch.int64, copy=True)
    batch, tokens = token_ids.shape
    past = int(cache.get_seq_length()) if cache is not None else 0
    positions = named.get("position_ids")
    if positions is None:
        positions = named.get("cache_position")
    if positions is None:
        positions = torch.arange(past, past + tokens)
    positions = positions.detach().to("cpu", torch.int64, copy=True).reshape(-1, tokens).expand(batch, tokens)
    real = _real_keys(named.get("attention_mask"), batch, past, tokens)
    if real is not None and bool(real.all()):
        real = None
    keep = named.get("logits_to_keep")
    return Forward(token_ids, positions, past, cache, real, 0 if keep is None else keep)


def _real_keys(mask: Any, batch: int, past: int, tokens: int) -> Optional[torch.Tensor]:
    """[B, past + T] bool: which keys are no padding; None when the mask does not say."""
    if isinstance(mask, dict):  # prepared by generate for static caches, one mask per kind of layer
        mask = mask.get("full_attention")
    if not isinstance(mask, torch.Tensor):
        return None
    mask = mask.detach().cpu()
    if mask.dim() == 4:
        # the last query sees every real key
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask == 0
    if mask.dim() != 2 or mask.shape[1] < past + tokens:
        return None
    return mask[:, : past + tokens].to(torch.bool).expand(batch, -1)


def rows_of(call: Forward) -> tuple[list[int], list[int], list[int]]:
    """Token ids, positions and sequence numbers of the real rows."""
    numbers = torch.tensor(call.sequences)[:, None].expand(call.batch, call.tokens)
    return tuple(call.kept_rows(value).tolist() for value in (call.token_ids, call.positions, numbers))
