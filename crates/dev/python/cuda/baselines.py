"""What the engine's speed is held against: the device's own rates, and transformers."""

import inspect
import time

import torch
import torch.nn.functional as F
from results import median


def timed(work, rounds, warm=2):
    """Median seconds of `work`, by the device's clock."""
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return median(seconds)


def copy_rate(gigabytes=4, rounds=15):
    """Bytes a second of a device-to-device copy, read and written ones counted."""
    a = torch.empty(gigabytes << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / timed(lambda: b.copy_(a), rounds)


def matrix_rate(size=8192, rounds=15):
    """FLOP/s of a square bf16 matrix product on random data."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, rounds)


def layer_matrices(c):
    """(columns, rows) of each matrix of a layer, with those that share an input side by side."""
    d, f = c["hidden_size"], c["intermediate_size"]
    size = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
    return [(d, q + 2 * kv), (q, d), (d, 2 * f), (f, d)]


def shape_rate(c, tokens, rounds=10):
    """FLOP/s that cuBLAS reaches through torch on just these shapes."""
    work = []
    for a, b in layer_matrices(c):
        x = torch.randn(tokens, a, device="cuda", dtype=torch.bfloat16)
        work.append((x, [torch.randn(b, a, device="cuda", dtype=torch.bfloat16) for _ in range(4)]))

    def run():
        for i in range(c["num_hidden_layers"]):
            for x, weights in work:
                F.linear(x, weights[i % 4])

    flop = c["num_hidden_layers"] * sum(2 * tokens * a * b for a, b in layer_matrices(c))
    return flop / timed(run, rounds)


def captured(step, warm=3):
    """A CUDA graph of `step`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def eager(model, context, tokens):
    """Tokens a second of transformers' eager decoding, greedy, with its default cache."""
    ids = torch.randint(0, model.config.vocab_size, (1, context), device="cuda")
    out = model(ids, use_cache=True, logits_to_keep=1)
    token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    seconds = None
    for part in (5, tokens):  # the first few warm up
        torch.cuda.synchronize()
        started = time.time()
        for _ in range(part):
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        torch.cuda.synchronize()
        seconds = time.time() - started
    return tokens / seconds


def static_graph(model, context, tokens):
    """Tokens a second of transformers with its static cache, one step captured as a CUDA graph and replayed."""
    from transformers import StaticCache

    config = model.config
    # Where the cache counts by itself, every replay takes a slot.
    cache = StaticCache(config=config, max_cache_len=context + tokens + 64)
    takes_places = "cache_position" in inspect.signature(model.forward).parameters
    at = lambda places: {"cache_position": places, "position_ids": places[None]} if takes_places else {}
    ids = torch.randint(0, config.vocab_size, (1, context), device="cuda")
    places = torch.arange(context, device="cuda")
    out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **at(places))
    token = out.logits[:, -1:].argmax(-1).clone()
    place = torch.tensor([context], device="cuda")

    def step():
        out = model(token, past_key_values=cache, use_cache=True, **at(place))
        token.copy_(out.logits[:, -1:].argmax(-1))
        place.add_(1)

    graph = captured(step)
    return 1 / timed(graph.replay, tokens)
