"""Reads one call of a transformers model: which tokens at which positions, and which rows and keys are padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import torch


@dataclass
class Forward:
    """One call. Taps hold only real rows: B sequences of T tokens become one list of rows, padding left out."""

    token_ids: torch.Tensor  # [B, T]
    positions: torch.Tensor  # [B, T]
    past: int  # tokens in the cache before the call, padding included
    cache: Any
    rows: Optional[torch.Tensor]  # [B, T] bool, None: all real
    keys: Optional[torch.Tensor]  # [past + T] bool, for one sequence; None: all real
    first_sequence: Optional[int] = None
    sampled: Optional[int] = None
    taps: dict[str, torch.Tensor] = field(default_factory=dict)

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
        """Whether this call is fed the one token chosen after `before`."""
        return (self.batch, self.tokens) == (1, 1) and self.past == before.past + before.tokens

    def kept_rows(self, value: torch.Tensor) -> torch.Tensor:
        """[B, T, …] -> [rows, …]"""
        value = value.expand(self.batch, *value.shape[1:]).flatten(0, 1)
        return value if self.rows is None else value[self.rows.flatten().to(value.device)]

    def kept_last_rows(self, value: torch.Tensor, count: int) -> torch.Tensor:
        """[1, count, …], the last `count` tokens of one sequence -> [rows, …]"""
        return value[0] if self.rows is None else value[0][self.rows[0, -count:].to(value.device)]

    def kept_queries(self, value: torch.Tensor) -> torch.Tensor:
        """[H, T, …] of one sequence -> [H, rows, …]"""
        return value if self.rows is None else value[:, self.rows[0].to(value.device)]

    def visible_keys(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        value = value.narrow(axis, 0, self.visible)
        if self.keys is None:
            return value
        return value.index_select(axis, self.keys.nonzero().flatten().to(value.device))


def is_one_sequence(call: Forward) -> bool:
    return call.batch == 1


def read_call(args: tuple, kwargs: dict) -> Optional[Forward]:
    """The call's tokens, or None when it is not given token ids."""
    token_ids = kwargs.get("input_ids", args[0] if args else None)
    if token_ids is None:
        return None
    named = dict(zip(("input_ids", "attention_mask", "position_ids", "past_key_values"), args))
    named.update(kwargs)
    token_ids = token_ids.detach().to("cpu", torch.int64, copy=True)
    batch, tokens = token_ids.shape
    cache = named.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    positions = named.get("position_ids")
    if positions is None:
        positions = named.get("cache_position")
    if positions is None:
        positions = torch.arange(past, past + tokens)
    positions = positions.detach().to("cpu", torch.int64, copy=True).reshape(-1, tokens).expand(batch, tokens)
    real = _real_keys(named.get("attention_mask"), batch, past, tokens)
    rows = keys = None
    if real is not None and not bool(real.all()):
        rows = real[:, -tokens:]
        rows = None if bool(rows.all()) else rows
        keys = real[0] if batch == 1 else None
    return Forward(token_ids, positions, past, cache, rows, keys)


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
    numbers = torch.arange(call.batch)[:, None].expand(call.batch, call.tokens) + (call.first_sequence or 0)
    return tuple(call.kept_rows(value).tolist() for value in (call.token_ids, call.positions, numbers))
