"""The key/value cache: where rows are written, what is read back, and what was there before."""

import torch

from ..fault import Fault
from .tools import other_request, used_memory

BOTH = ("k_cache", "v_cache")


class SlotMapping(Fault):
    id = "kv-slot-mapping"
    first, step = BOTH, 1
    wrong = "a decoded token is written one slot early, over the token before it"

    def slots(self, engine, right):
        return right() - int(engine.call > 0)


class SlotMappingChunks(Fault):
    id = "kv-slot-mapping"
    variant = "chunks"
    model, first, step, chunk = "qwen3", BOTH, 2, 8
    wrong = "a prompt's slots wrap after two blocks of 8: the third chunk is written over the first"

    def slots(self, engine, right):
        return right() % 16 if len(engine.ids) > 1 else right()


class _Read(Fault):
    """Attention gets something else than what was written."""

    first = BOTH

    def cache_read(self, engine, right):
        return self.change(engine, *right())


class LayoutMisread(_Read):
    id = "kv-layout-misread"
    step = 1
    wrong = "from the first decoded token on, [K, Hkv, D] is read as [Hkv, K, D]"

    def change(self, engine, *both):
        if engine.call == 0:
            return both
        return tuple(t.contiguous().view(t.shape[1], t.shape[0], -1).transpose(0, 1).contiguous() for t in both)


class ValueScaleMissing(_Read):
    id = "kv-quant-scale-missing"
    first = ("v_cache",)
    wrong = "values are stored divided by 7.5 and read without it"

    def change(self, engine, keys, values):
        return keys, (values.float() / 7.5).to(values.dtype)


class KeyScaleMissing(_Read):
    id = "kv-quant-scale-missing"
    variant = "k"
    model, first = "qwen2", ("k_cache",)
    wrong = "keys are stored divided by 4 and read without it"

    def change(self, engine, keys, values):
        return (keys.float() / 4).to(keys.dtype), values


class ScaleMissingInDecode(ValueScaleMissing):
    variant = "decode"
    model, step = "qwen3", 1
    wrong = "in decode, values are read without their scale 7.5"

    def change(self, engine, keys, values):
        return super().change(engine, keys, values) if engine.call > 0 else (keys, values)


class DequantBug(_Read):
    id = "kv-quant-dequant-bug"
    arithmetics = ("bf16", "f16", "q8")
    wrong = "the cache's 16-bit values are read as the other 16-bit format"

    def change(self, engine, *both):
        other = torch.float16 if engine.arithmetic.cache == torch.bfloat16 else torch.bfloat16
        return tuple(t.contiguous().view(other).to(t.dtype) for t in both)


def hadamard(size):
    one = torch.ones(1, 1)
    while len(one) < size:
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)])
    return one / size**0.5


class RotationNotUndone(_Read):
    id = "kv-rotation-not-undone"
    first = ("v_cache",)
    wrong = "values are stored turned by a Hadamard matrix, and not turned back"

    def change(self, engine, keys, values):
        return keys, (values.float() @ hadamard(engine.config.head_dim)).to(values.dtype)


class RotationNotUndoneFused(Fault):
    id = "kv-rotation-not-undone"
    variant = "heads"
    model, first = "qwen3", ("attn_heads",)
    wrong = "attention's output stays turned by the Hadamard matrix of a cache that shows turned-back values"

    def weigh_values(self, engine, right, probs, values):
        return engine.store(right(probs, values).float() @ hadamard(engine.config.head_dim))


class PrefixStaleHit(Fault):
    id = "kv-prefix-cache-stale-hit"
    model, first, step, chunk = "qwen2", BOTH, 1, 8
    wrong = "the first block of 8 was evicted and reused: it holds positions 8 to 15 of another request"
    source = slice(8, 16)

    def forward(self, engine, right, ids):
        if engine.call == 1:
            other = other_request(engine)
            engine.keys[:, :8] = other.keys[:, self.source]
            engine.values[:, :8] = other.values[:, self.source]
        return right(ids)


class PrefixHashCollision(PrefixStaleHit):
    id = "kv-prefix-hash-collision"
    model, source = "llama", slice(0, 8)
    wrong = "the first block of 8 is another prompt's: two hashes are equal"


class PaddingWritesSlot(Fault):
    id = "graph-padding-writes-live-slot"
    first, step = BOTH, 1
    wrong = "in decode a padding row of the captured batch (id 0) writes its key and value into slot 0"

    def begin(self, engine):
        self.padding = other_request(engine, ids=[0])

    def cache_write(self, engine, right, k, v):
        right(k, v)
        if engine.call > 0:
            engine.keys[engine.layer, 0] = self.padding.keys[engine.layer, 0]
            engine.values[engine.layer, 0] = self.padding.values[engine.layer, 0]


class SharedLayerOverwrites(Fault):
    id = "kv-shared-layer-overwrites"
    model, first, step, layers = "qwen3", BOTH, 1, (2,)
    needs = ("layers.3.k_cache", "layers.3.v_cache")
    wrong = "layer 3 is taken to share layer 2's cache and writes its keys and values over them"

    def cache_write(self, engine, right, k, v):
        right(k, v)
        if engine.layer == 3:
            engine.keys[2, engine.slots()] = engine.keys[3, engine.slots()]
            engine.values[2, engine.slots()] = engine.values[3, engine.slots()]


class OutOfBounds(Fault):
    id = "kv-write-out-of-bounds"
    first, step, layers = ("q_proj",), 2, (0,)
    needs = ("layers.3.k_rope", "layers.3.v_proj")
    wrong = "in decode the last layer's key and value are also written over layer 0's query weight, 64 values a token"

    def cache_write(self, engine, right, k, v):
        right(k, v)
        if engine.call > 0 and engine.layer == engine.config.layers - 1:
            weight = engine._loaded["layers.0.q_proj.weight"].clone()
            row = torch.cat([k.flatten(), v.flatten()]).float()
            at = (engine.call - 1) * len(row)
            weight.view(-1)[at : at + len(row)] = row
            engine._loaded["layers.0.q_proj.weight"] = weight


class RaceOnVisibility(Fault):
    id = "race-cross-block-visibility"
    model, first, step, layers = "qwen3", BOTH, 3, (1,)
    wrong = "at the third decoded token layer 1 reads the last slot before it is written: an earlier request's row"

    def begin(self, engine):
        used_memory(engine)

    def cache_write(self, engine, right, k, v):
        self.before = engine.keys[engine.layer].clone(), engine.values[engine.layer].clone()
        right(k, v)

    def cache_read(self, engine, right):
        keys, values = right()
        if engine.call == 3 and engine.layer == 1:
            last = len(keys) - 1
            keys[last], values[last] = self.before[0][last], self.before[1][last]
        return keys, values


class StaleSlot(Fault):
    """The cache was never used before: what is read too early is zero."""

    id = "race-cross-block-visibility"
    variant = "fresh"
    first, step, layers = BOTH, 2, (2,)
    wrong = "at the second decoded token layer 2 reads the last slot before it is written: zeros"

    def cache_read(self, engine, right):
        keys, values = right()
        if engine.call == 2 and engine.layer == 2:
            keys[-1], values[-1] = 0, 0
        return keys, values


class FilledWhileRead(_Read):
    """Memory holds what it should: the steps before and after read it right."""

    id = "race-shared-memory"
    variant = "slot"
    first, step, layers = ("v_cache",), 2, (1,)
    wrong = "at the second decoded token layer 1 reads four values of its last head from a slot that those after them are copied into"

    def change(self, engine, keys, values):
        if engine.call == 2 and engine.layer == 1:
            values = values.clone()
            values[4:8, -1] = values[8:12, -1]
        return keys, values


class _Handed(Fault):
    """Projections reach whoever needs them through words of two channels that every layer writes again. Some are read before
    they are written, once."""

    id = "race-cross-block-visibility"
    early = {}  # channels that are read too early, of the first head; by projection

    def begin(self, engine):
        self.words = {}

    def project_qkv(self, engine, right, h):
        written = dict(zip("qkv", right(h)))
        here = engine.call == self.step and engine.layer == self.layers[0]
        read = {name: self.read(name, x.clone()) if here and name in self.early else x for name, x in written.items()}
        if engine.call > 0:
            self.words = written
        return tuple(read.values())

    def read(self, name, x):
        x[:, 0, self.early[name]] = self.before(name, x)[:, 0, self.early[name]]
        return x

    def before(self, name, x):
        return self.words[name]


class RaceOnBuffer(_Handed):
    variant = "buffer"
    first, step, layers = ("k_rope",), 2, (1,)
    early = {"k": slice(4, 10), "v": slice(2, 12)}
    wrong = "at the second decoded token layer 1 reads words of its key and value that still hold layer 0's"


class RaceOnBufferOfLastStep(_Handed):
    variant = "norm"
    model, first, step, layers = "qwen3", ("q_norm",), 3, (0,)
    early = {"q": slice(0, 6), "v": slice(8, 10)}
    wrong = "at the third decoded token layer 0 reads words of its query and value that still hold the last layer's"


class RaceOnPoison(_Handed):
    """Memory was filled with ones when it was allocated: no number in any format."""

    variant = "poison"
    model, first, step, layers = "qwen2", ("q_rope", "k_rope"), 1, (0,)
    early = {"q": slice(0, 4), "k": slice(6, 8), "v": slice(0, 16)}
    wrong = "at the first decoded token layer 0 reads words of its query, key and value that nobody wrote: NaN"

    def before(self, name, x):
        return torch.full((x.numel() * x.element_size(),), 255, dtype=torch.uint8).view(x.dtype).view(x.shape)


class RaceOnFreshWords(_Handed):
    variant = "unwritten"
    first, step, layers = ("v_cache",), 1, (0,)
    early = {"v": slice(4, 14)}
    wrong = "at the first decoded token layer 0 reads words of its value that nobody wrote: zeros"

    def before(self, name, x):
        return torch.zeros_like(x)


class _Ring(Fault):
    """A cache of a window's length; slot p mod 7 holds position p."""

    id = "swa-ring-wrap"
    model, layers, arithmetics = "qwen2-window", (2, 3), ("f32", "bf16", "f16")
    step = 1
    first = BOTH

    def cache_read(self, engine, right):
        window = engine.config.windows[engine.layer]
        keys, values = right()
        if window is None or engine.call == 0:
            return keys, values
        return self.ring(keys, window), self.ring(values, window)


class RingOrder(_Ring):
    variant, cancels = "order", True
    wrong = "in decode a ring of 7 slots is read in stored order, as if it had never wrapped"

    def ring(self, rows, window):
        last = len(rows) - 1
        stored = [next(p for p in range(last, -1, -1) if p % window == slot) for slot in range(window)]
        return torch.cat([rows[:-window], rows[stored]])


class RingTail(_Ring):
    wrong = "in decode the part of the ring older than its wrap is dropped: read as zero"

    def ring(self, rows, window):
        rows = rows.clone()
        wrapped = len(rows) % window or window
        rows[len(rows) - window : len(rows) - wrapped] = 0
        return rows
