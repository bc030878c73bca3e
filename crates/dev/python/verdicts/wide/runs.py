"""How the engines are run, and the traces written: prompts whole and in chunks, batches, prefixes, forks, rings."""

import json
import shutil
from pathlib import Path

import torch
from engine.record import MODULES, as_array, kind_of
from firstdiff.trace import write_safetensors

import tiny
from .kernels import Kernels
from .models import MASSIVE_TOKEN

ATTENTION = ("attn_scores", "attn_probs")
CACHES = ("k_cache", "v_cache")
CHOICE = ("router_topk", "router_weights", "router_scores", "router_logits")
SELECTIONS = {
    "all": lambda kind: True,
    "modules": lambda kind: kind in MODULES,
    "outs": lambda kind: kind in ("out", "logits", "embed"),
    "logits": lambda kind: kind == "logits",
    "no choice": lambda kind: kind not in CHOICE,
    "no cache": lambda kind: kind not in CACHES,
    "heads": lambda kind: kind not in (*CACHES, *ATTENTION),
}


class Run:
    """One trace: engines by sequence number, and the steps they have taken together."""

    def __init__(self, case, models, folder, planted):
        self.case, self.folder, self.planted = case, Path(folder), planted
        self.config, self.weights = models.load(case.model)
        self.engines, self.tokens, self.steps = {}, {}, 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def prompt(self, number=0, length=None):
        ids = tiny.prompt_ids(length or self.case.prompt, 100 + 10 * self.case.seed + number, self.config.vocab)
        if "massive" in self.case.model:  # the massive token stands where engines see theirs
            ids[number % len(ids)] = MASSIVE_TOKEN
        return ids

    def engine(self, number, capacity=None):
        case = self.case
        selection = SELECTIONS[case.taps]
        engine = Kernels(self.config, self.weights, case.way, lambda tap: selection(kind_of(tap)),
                         capacity or case.prompt + case.steps + 40, self.planted, case.ring)
        self.engines[number] = engine
        return engine

    def step(self, fed, record=True, **extra):
        """One forward call: token ids by sequence number. Recorded, and its best tokens noted."""
        results = {}
        for number, ids in fed.items():
            engine = self.engines.get(number) or self.engine(number)
            if self.planted is not None:
                self.planted.begin(self.steps, record and number == min(fed))
            logits, taps = engine.run(ids)
            results[number] = (logits, taps, engine)
            self.tokens[number] = int(logits[-1].argmax())
        if record:
            self.write(fed, results, extra)

    def write(self, fed, results, extra):
        case, several = self.case, len(self.engines) > 1
        tensors = {"token_ids": integers(sum(fed.values(), [])), **extra}
        first = min(fed)
        if several or first > 0:
            tensors["sequence"] = integers([number for number, ids in fed.items() for _ in ids])
        tensors["positions"] = integers([p for _, _, engine in results.values() for p in engine.positions.tolist()])
        if case.says("sampled"):
            tensors["sampled"] = integers([self.tokens[number] for number in fed])
        elif not several:
            tensors["sampled"] = integers([self.tokens[first]])
        names = results[first][1].keys()
        for name in names:
            kind, parts = kind_of(name), [taps[name] for _, taps, _ in results.values()]
            if kind in (*ATTENTION, *CACHES) and (several and not case.says("keys")):
                continue  # without its own axis of keys a batch cannot hold them
            value = diagonal(parts, kind) if kind in ATTENTION else torch.cat(parts)
            if kind in ("logits", "logits_raw", "final_norm") and case.last_rows:
                value, rows = self.last(parts, fed)
                if case.last_rows == "said":
                    tensors["logits_rows"] = integers(rows)
            tensors[name] = as_array(value)
        if case.says("keys"):
            tensors |= self.keys(results)
        if case.says("scales") and case.way.cache is not None:
            for layer in range(self.config.layers):
                for which in "kv":
                    tensors[f"layers.{layer}.{which}_scale"] = as_array(torch.tensor([case.way.cache.fixed]))
        write_safetensors(self.folder / f"step-{self.steps:06}.safetensors", tensors)
        self.steps += 1

    def last(self, parts, fed):
        """The last row of each sequence, or every third row where that is what is said."""
        ends, rows, at = [], [], 0
        for part in parts:
            chosen = list(range(0, len(part), 3)) if self.case.last_rows == "said" else [len(part) - 1]
            ends.append(part[chosen])
            rows += [at + n for n in chosen]
            at += len(part)
        return torch.cat(ends), rows

    def keys(self, results):
        """Whose key each entry is, for each layer that holds others than the rest."""
        layers = []
        for layer in range(self.config.layers):
            of = {}
            for number, (_, _, engine) in results.items():
                engine.length -= len(engine.ids)
                of[number] = engine.key_positions(layer)
                engine.length += len(engine.ids)
            layers.append((integers([n for n, held in of.items() for _ in held]),
                           integers([int(p) for held in of.values() for p in held])))
        same = all(len(one[1]) == len(layers[0][1]) and (one[1] == layers[0][1]).all() for one in layers)
        if same:
            return {"key_sequence": layers[0][0], "key_position": layers[0][1]}
        return {f"layers.{n}.key_{what}": one[k] for n, one in enumerate(layers)
                for k, what in enumerate(("sequence", "position"))}

    def describe(self):
        about = {"format": "firstdiff.trace/1", "producer": {"name": "an engine of the bench", "version": "1"},
                 "model": {"family": self.config.family}, "sampling": {"do_sample": False}, "complete": True}
        if self.case.arithmetic:
            about["arithmetic"] = self.case.arithmetic
        (self.folder / "trace.json").write_text(json.dumps(about, indent=1))

    def greedy(self, numbers=(0,), steps=None):
        for _ in range(self.case.steps if steps is None else steps):
            self.step({number: [self.tokens[number]] for number in numbers})


def integers(values):
    import numpy

    return numpy.asarray(values, numpy.int64)


def diagonal(parts, kind):
    """[heads, rows, keys] of several sequences: masked between them."""
    blank = float("-inf") if kind == "attn_scores" else 0.0
    rows, keys = sum(p.shape[1] for p in parts), sum(p.shape[2] for p in parts)
    whole = torch.full((parts[0].shape[0], rows, keys), blank, dtype=parts[0].dtype)
    row = key = 0
    for part in parts:
        whole[:, row : row + part.shape[1], key : key + part.shape[2]] = part
        row, key = row + part.shape[1], key + part.shape[2]
    return whole


# ---- ways to run -------------------------------------------------------------------------------------------------


def plain(run):
    run.step({0: run.prompt()})
    run.greedy()


def chunked(run):
    ids, size = run.prompt(), (7, 8, 1, 5)[run.case.seed % 4] if run.case.prompt < 100 else 128
    for at in range(0, len(ids), size):
        run.step({0: ids[at : at + size]})
    run.greedy()


def batch(run):
    length = run.case.prompt
    run.engine(0), run.engine(1), run.engine(2)
    run.step({n: run.prompt(n, size) for n, size in enumerate((length, length - 7, length // 2))})
    run.greedy((0, 1, 2))


def joining(run):
    """Continuous batching: a second prompt is computed beside the first one's next token; the first one ends early."""
    run.engine(0), run.engine(1)
    run.step({0: run.prompt(0)})
    run.step({0: [run.tokens[0]], 1: run.prompt(1, run.case.prompt - 5)})
    run.greedy((0, 1), 2)
    run.greedy((1,), 1)


def prefix(run):
    """The first half of the prompt comes from a cache that was filled before."""
    ids, cut = run.prompt(), run.case.prompt // 2
    run.step({0: ids[:cut]}, record=False)
    run.step({0: ids[cut:]})
    run.greedy()


def prefix_in_batch(run):
    ids, cut = run.prompt(), run.case.prompt // 2
    run.engine(0), run.engine(1)
    run.step({0: ids[:cut]}, record=False)
    run.step({0: ids[cut:], 1: run.prompt(1, run.case.prompt - 3)})
    run.greedy((0, 1))


def fork(run):
    """A second sequence goes on from the first one's keys."""
    ids, cut = run.prompt(), run.case.prompt - 6
    parent, child = run.engine(0), run.engine(1)
    run.step({0: ids})
    child.keys[:], child.values[:], child.length = parent.keys, parent.values, cut
    said = {"fork": integers([[1, 0, cut]])} if run.case.says("fork") else {}
    run.step({1: run.prompt(1, 6)}, **said)
    run.greedy((0, 1), 2)


def again(run):
    """A second prompt with an empty cache in the same trace."""
    run.step({0: run.prompt()})
    run.greedy(steps=1)
    run.engines.pop(0)
    run.step({1: run.prompt(1)})
    run.greedy((1,), 1)


RUNS = {f.__name__: f for f in (plain, chunked, batch, joining, prefix, prefix_in_batch, fork, again)}


def write(case, models, folder, planted=None):
    """The trace of `case`."""
    run = Run(case, models, folder, planted)
    with torch.no_grad():
        RUNS[case.run](run)
    run.describe()
    return run
