"""The position that rows are rotated by."""

import torch

from ..fault import Fault


class _Positions(Fault):
    first = ("q_rope", "k_rope")


class DecodeAtZero(_Positions):
    id = "pos-decode-offset-missing"
    step = 1
    wrong = "every decoded token is rotated as if at position 0"

    def rope_positions(self, engine, right):
        return right() if engine.call == 0 else torch.zeros_like(right())


class DecodeOffByOne(_Positions):
    id = "pos-decode-offset-wrong"
    model, step = "qwen2", 1
    wrong = "decoded tokens are rotated one position late"

    def rope_positions(self, engine, right):
        return right() + int(engine.call > 0)


class DecodePromptTwice(_Positions):
    id = "pos-decode-offset-wrong"
    variant = "twice"
    model, step = "qwen3", 1
    wrong = "the prompt's 24 tokens are counted twice in decode"

    def rope_positions(self, engine, right):
        return right() + (engine.prompt_length if engine.call > 0 else 0)

    def begin(self, engine):
        engine.prompt_length = self.prompt


class ChunkRestarts(_Positions):
    id = "pos-chunk-offset"
    chunk, step = 8, 1
    wrong = "positions restart at 0 with each chunk of the prompt"

    def rope_positions(self, engine, right):
        return right() - (engine.length if len(engine.ids) > 1 else 0)


class PrefixResume(_Positions):
    id = "kv-prefix-resume-broken"
    model, chunk, step = "qwen3", 8, 1
    wrong = "a prompt resumed at token 8 goes on at position 1: blocks are counted, not tokens"

    def rope_positions(self, engine, right):
        return right() - engine.length + engine.length // 8 if len(engine.ids) > 1 else right()


class GraphStalePosition(_Positions):
    id = "graph-stale-args"
    step = 2
    wrong = "position frozen at the first decoded token's, 24"

    def rope_positions(self, engine, right):
        return right().clamp(max=24) if engine.call > 0 else right()


class GraphStaleLength(Fault):
    id = "graph-stale-args"
    variant = "length"
    model, step = "qwen2", 2
    first = ("attn_probs",)
    wrong = "number of visible keys frozen at the first decoded token's, 25"

    def visible(self, engine, right, keys):
        seen = right(keys)
        if engine.call > 0:
            seen[:, 25:] = False
        return seen
