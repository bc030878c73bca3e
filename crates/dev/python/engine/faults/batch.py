"""Several sequences in one call: rows that are given another row's position, padding, or data."""

import math

import torch

from ..fault import Fault
from .tools import other_request

LENGTHS = (24, 20, 17)


class _Batch(Fault):
    batch = LENGTHS


class RopeStride(_Batch):
    id = "rope-batch-stride"
    first, step = ("q_rope", "k_rope"), 1
    wrong = "in decode every row is rotated at row 0's position"

    def rope_positions(self, engine, right):
        return engine.batch[0].positions if engine.call > 0 else right()


class LeftPad(_Batch):
    id = "pos-left-pad"
    model, first, cancels = "qwen2", ("q_rope", "k_rope"), True
    wrong = "positions count the padding to the left"

    def rope_positions(self, engine, right):
        return right() + engine.pad


class PaddingAttended(_Batch):
    id = "mask-padding-ignored"
    first = ("attn_heads",)
    wrong = "padding to the left (id 0, at position 1) is attended to"

    def begin(self, engine):
        self.padding = None

    def attention(self, engine, right, q, keys, values):
        if engine.pad == 0:
            return right(q, keys, values)
        if self.padding is None:
            self.padding = other_request(engine, ids=[0])
        more = lambda pad, rows: torch.cat([pad[engine.layer, :1].expand(engine.pad, -1, -1), rows])
        seen = torch.nn.functional.pad(engine.visible(len(keys)), (engine.pad, 0), value=True)
        keys, values = more(self.padding.keys, keys), more(self.padding.values, values)
        probs = engine.softmax(engine.scores(q, keys), seen)
        return engine.at("attn_heads", engine.weigh_values(probs, values))


class RowCorruption(_Batch):
    id = "batch-row-corruption"
    first, step = ("mlp_out",), 1
    wrong = "in decode the down projection of row 2 is row 1's"

    def linear(self, engine, right, x, module):
        y = right(x, module)
        if module == "down_proj" and engine.call > 0:
            engine.last_down = getattr(engine, "last_down", {}) | {engine.layer: y}
            if engine is engine.batch[2]:
                return engine.batch[1].last_down[engine.layer]
        return y


class RowZero(_Batch):
    id = "batch-row-corruption"
    variant = "nan"
    model, first = "qwen3", ("gate_proj",)
    wrong = "rows of every sequence but the first are NaN after the gate projection"

    def linear(self, engine, right, x, module):
        y = right(x, module)
        return y * math.nan if module == "gate_proj" and engine is not engine.batch[0] else y


class OtherRequest(_Batch):
    """Its new row's too: the slot is the other one's altogether."""

    id = "cross-request-contamination"
    first, step = ("attn_heads",), 1
    wrong = "in decode row 1 reads the cache slot of row 0"

    def cache_read(self, engine, right):
        if engine.call == 0 or engine is not engine.batch[1]:
            return right()
        end = engine.length + len(engine.ids)
        other = engine.batch[0]
        return other.keys[engine.layer, :end].clone(), other.values[engine.layer, :end].clone()
