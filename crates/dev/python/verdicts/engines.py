"""The engines under test: tiny transformers models in four arithmetics, and the ways in which people run them."""

import inspect
import json
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT / "crates" / "dev" / "python"))  # the second engine
sys.path.insert(0, str(ROOT / "recorders" / "python" / "src"))

import blocks  # noqa: E402
import firstdiff.transformers  # noqa: E402
import tiny  # noqa: E402
from gguf_models import GgufModel  # noqa: E402
from recording import REAL_PROMPTS  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import LlamaModel, StaticCache  # noqa: E402
from wide.models import MASSIVE_TOKEN, Models, whole  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "q8": torch.float32}
PROMPT, STEPS = 24, 4

LONG = 2048
MORE = [
    tiny.Tiny("heads-32", "llama", {"hidden_size": 256, "num_attention_heads": 32, "num_key_value_heads": 8}),
    tiny.Tiny("long", "llama", {"max_position_embeddings": 2 * LONG, "num_hidden_layers": 1, "num_attention_heads": 2,
                               "num_key_value_heads": 1, "head_dim": 16}),
    tiny.Tiny("head-dim-128", "qwen3", {"head_dim": 128, "num_attention_heads": 2}),
    tiny.Tiny("massive", "llama"),
    tiny.Tiny("quiet", "llama"),
    tiny.Tiny("blocks-llama", "llama", {"hidden_size": 128, "intermediate_size": 160}),
    tiny.Tiny("blocks-qwen2", "qwen2", {"hidden_size": 128, "intermediate_size": 160, "rope_theta": 1e6}),
    tiny.Tiny("blocks-qwen3", "qwen3", {"hidden_size": 128, "intermediate_size": 160, "head_dim": 32, "rope_theta": 1e6}),
    tiny.Tiny("blocks-heads-32", "llama", {"hidden_size": 256, "intermediate_size": 160, "num_attention_heads": 32,
                                           "num_key_value_heads": 8}),
]
TINY = tiny.BY_NAME | {one.name: one for one in MORE}
# Rows of the embedding, and a factor: one token 100 times larger than any other; all as small as trained ones are.
LOUDNESS = {"massive": (MASSIVE_TOKEN, 100.0), "quiet": (slice(None), 0.02)}
REAL = ("smollm2", "qwen")


class Engines:
    """Checkpoints in a folder, each made once, and the models loaded from them, one copy in a process."""

    def __init__(self, folder, models):
        self.folder, self.models = Path(folder), Path(models or "no-models")
        self.wide = Models(folder)

    @cache
    def path(self, name):
        """What `firstdiff check --model` is given."""
        if name in REAL:
            return self.models / f"{name}.gguf"
        if name.startswith("blocks-"):
            return whole(self.folder / f"{name}.gguf", lambda file: blocks.make(TINY[name], file))
        return whole(self.folder / name, lambda folder: make(name, folder))

    @cache
    def load(self, name, arithmetic, attention):
        if arithmetic == "llama.cpp":
            from llama_cpp import Llama

            return Llama(str(self.path(name)), n_ctx=256, logits_all=True, flash_attn=attention == "flash", n_threads=1,
                         verbose=False)
        dtype = DTYPES[arithmetic]
        if name in REAL or name.startswith("blocks-"):
            model = (GgufModel if name in REAL else blocks.Blocks)(self.path(name)).to_transformers(dtype, attention)
        else:
            model = tiny.load(self.path(name), dtype, attention)
        if arithmetic == "q8":
            blocks.install(model)
        return model


def make(name, folder):
    tiny.make(TINY[name], folder)
    if name in LOUDNESS:
        change_embedding(folder, *LOUDNESS[name])


def change_embedding(folder, rows, factor):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][rows] *= factor
    save_file(weights, file, metadata={"format": "pt"})


def prompt(name, seed, length=PROMPT):
    if name in REAL:
        # its own first words in another order: still text of a kind, and other tokens at other places
        words = REAL_PROMPTS[name]
        turn = seed % len(words)
        return (words[turn:] + words[:turn])[:length]
    ids = tiny.prompt_ids(length, seed)
    if name != "massive":
        return ids
    # the massive token comes once, where engines see theirs
    return [MASSIVE_TOKEN, *(token if token != MASSIVE_TOKEN else token + 1 for token in ids[1:])]


def declare(trace, **keys):
    """Says in trace.json what the recorder cannot see: how an engine rounds inside."""
    file = Path(trace) / "trace.json"
    about = json.loads(file.read_text())
    if keys.pop("nothing", False):
        about.pop("arithmetic", None)
    else:
        about.setdefault("arithmetic", {}).update(keys)
    file.write_text(json.dumps(about))


# transformers 5.24 says `cache` where older ones said `past_key_values`.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


def going_on(cache):
    """What a model is called with to go on from a cache, or from none."""
    return {CACHE: cache, "use_cache": True}


def cache_of(out):
    return getattr(out, CACHE)


# ---- ways to run: each takes (model, prompt ids, decode steps) ---------------------------------------------------


def greedy(model, out, steps, **keys):
    for _ in range(steps):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(token, **going_on(cache_of(out)), **keys)


def plain(model, ids, steps):
    greedy(model, model(torch.tensor([ids]), use_cache=True), steps)


def chunked(model, ids, steps):
    out, cut = None, (0, 1, 8, 9, len(ids))
    for start, end in zip(cut, cut[1:]):
        out = model(torch.tensor([ids[start:end]]), **going_on(cache_of(out) if out else None))
    greedy(model, out, steps)


def static_cache(model, ids, steps):
    cache = StaticCache(config=model.config, max_cache_len=len(ids) + steps + 3)
    greedy(model, model(torch.tensor([ids]), **going_on(cache)), steps)


def others(model, ids):
    """Two further prompts for a batch, of the model's own tokens."""
    vocab = min(model.config.vocab_size, 30_000)
    return [[(7 * token + 11 * n + 3) % vocab for n, token in enumerate(ids)], [token % vocab for token in ids[::-1]]]


def batch_of_3(model, ids, steps):
    greedy(model, model(torch.tensor([ids, *others(model, ids)]), use_cache=True), steps)


def padded(model, ids, side):
    """Three prompts of which the first needs no padding, as a batch: tokens, mask, positions."""
    rows = [ids, *(other[:length] for other, length in zip(others(model, ids), (len(ids) - 7, len(ids) // 2)))]
    tokens, mask = torch.zeros(3, len(ids), dtype=torch.long), torch.zeros(3, len(ids), dtype=torch.long)
    for n, row in enumerate(rows):
        at = slice(len(ids) - len(row), None) if side == "left" else slice(len(row))
        tokens[n, at], mask[n, at] = torch.tensor(row), 1
    return tokens, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def padded_batch(side):
    def run(model, ids, steps):
        tokens, mask, positions = padded(model, ids, side)
        out = model(tokens, attention_mask=mask, position_ids=positions, use_cache=True)
        windowed = getattr(model.config, "sliding_window", None) and model.config.use_sliding_window
        if side == "right" and windowed:
            return  # transformers counts a window in slots: with a gap between them it decodes another model
        last = mask.sum(-1)
        logits = out.logits[torch.arange(3), last - 1 if side == "right" else -1]
        for n in range(steps):
            mask = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), -1)
            token, position = logits.argmax(-1, keepdim=True), (last + n)[:, None]
            out = model(token, attention_mask=mask, position_ids=position, **going_on(cache_of(out)))
            logits = out.logits[:, -1]

    return run


RUNS = {
    "plain": plain,
    "chunked": chunked,
    "static": static_cache,
    "batch": batch_of_3,
    "left-padded": padded_batch("left"),
    "right-padded": padded_batch("right"),
}

# What is recorded: everything there is; what forward hooks on modules see; a line a layer; the logits alone.
TAPS = {
    "all": {},
    "modules": {"attention": False},
    "outs": {"taps": ["layers.*.out", "logits"]},
    "logits": {"taps": ["logits"]},
}


def record(model, trace, ids, run, taps, steps=STEPS, arithmetic=None):
    if not isinstance(model, torch.nn.Module):
        return record_llama_cpp(model, trace, ids, steps)
    with firstdiff.transformers.record(model, trace, overwrite=True, **TAPS[taps]) as recorder:
        RUNS[run](model, ids, steps)
    assert recorder.steps > 0 and recorder.session.alive, "the recorder gave up"
    if arithmetic:
        declare(trace, **arithmetic)
    return trace


def record_llama_cpp(llama, trace, ids, steps):
    from firstdiff.llama_cpp import record as recording

    llama.reset()
    with recording(llama, trace, overwrite=True) as recorder:
        for _ in islice(llama.generate(ids, temp=0.0), steps + 1):
            pass
    assert recorder.steps == steps + 1, "the recorder gave up"
    return trace
