"""Records vLLM's V1 engine from inside its workers: Llama, Qwen2 and Qwen3.

    llm = LLM(model, enforce_eager=True, worker_extension_cls="vllm_recorder.WorkerExtension")
    with vllm_recorder.record(llm, "my-trace"):
        llm.generate(prompts, params)

`worker_extension_cls` is vLLM's own way to put methods into its workers, so the same code serves one process and many.
One step is one call of the model: chunks of prompts and decoded tokens of several requests, a row each.

Forward hooks show what modules return. vLLM fuses: q, k, v are one product, gate and up another, and a norm that adds
the residual returns the sum beside the norm. Attention is watched where its backend is called: the cache is read
there, after the keys of this step were written, through the block table that the kernel gets.

With tensor parallelism each rank writes what it holds into a trace of its own, and `join` puts the parts together when
all have finished: no rank ever waits for another because of the recorder.
"""

from __future__ import annotations

import functools
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import numpy as np
import torch
from firstdiff._session import Session, Step
from firstdiff.trace import Array, Raw, Writer, write_safetensors

# taps whose last axis, or axis of heads, is spread over tensor parallel ranks
_SPREAD = {
    "q_proj": -1, "k_proj": -1, "v_proj": -1, "gate_proj": -1, "up_proj": -1, "mlp_act": -1,
    "q_norm": 1, "k_norm": 1, "q_rope": 1, "k_rope": 1, "k_cache": 1, "v_cache": 1, "attn_heads": 1,
}  # fmt: skip
_FLOAT8 = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@contextmanager
def record(llm: Any, path: Path, caches: bool = True) -> Iterator[None]:
    """Records every call of the model inside the block. Without `caches`, all but what attention read."""
    llm.reset_prefix_cache()  # what was computed before is not in the trace
    ranks = llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size
    llm.collective_rpc("firstdiff_start", args=(str(path), caches))
    complete = False
    try:
        yield
        complete = True
    finally:
        llm.collective_rpc("firstdiff_stop", args=(complete,))
        if ranks > 1:
            join(path, ranks)


class WorkerExtension:
    """What vLLM mixes into its worker class."""

    def firstdiff_start(self, path: str, caches: bool) -> None:
        self._firstdiff = Recorder(self.model_runner, Path(path), caches)

    def firstdiff_stop(self, complete: bool) -> None:
        self._firstdiff.close(complete)
        del self._firstdiff


class Recorder:
    """Watches the model of one worker."""

    def __init__(self, runner: Any, path: Path, caches: bool) -> None:
        from vllm import __version__ as version
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        self.runner, self.caches = runner, caches
        self.text = runner.vllm_config.model_config.hf_text_config
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        path = _part(path, rank) if ranks > 1 else path
        about = {
            "model": {"family": self.text.model_type},
            "environment": {"torch": torch.__version__, "device": str(runner.device), "tensor_parallel": ranks},
        }
        self.session = Session(lambda: Writer(path, producer={"name": "vllm", "version": version}, **about))
        self._undo: list[Callable[[], Any]] = []
        self._step: Optional[Step] = None
        self._rows = 0  # of this step, without padding
        self._lengths: list[int] = []  # rows of each request of this step
        self._ends: list[int] = []  # keys of each request after this step
        self._numbers: dict[str, int] = {}  # request -> sequence
        self._tokens: list[list[int]] = []  # of each sequence
        if self.text.num_key_value_heads < ranks:
            self.session.fail("there are more ranks than key heads: some heads are held twice, which is not recorded")
        self._attach(runner.model)

    def close(self, complete: bool) -> None:
        for undo in reversed(self._undo):
            undo()
        self._flush()
        self.session.close(complete=complete, nothing="the model was not called while it was recorded")

    # ---- what is watched ----

    def _attach(self, model: Any) -> None:
        self._undo.append(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        self._output(model.model.embed_tokens, "embed")
        self._after(model.logits_processor, self._logits)
        if isinstance(getattr(self.runner, "sampler", None), torch.nn.Module):
            self._after(self.runner.sampler, self._sampled)
        stream = None  # the tap of the sum that the next fused norm makes
        for index, layer in enumerate(model.model.layers):
            at, attention, mlp = f"layers.{index}.", layer.self_attn, layer.mlp
            self._norm(layer.input_layernorm, at + "attn_norm", stream)
            sizes = [attention.q_size, attention.kv_size, attention.kv_size]
            self._output(attention.qkv_proj, [at + "q_proj", at + "k_proj", at + "v_proj"], sizes)
            for name in ("q_norm", "k_norm"):
                if hasattr(attention, name):
                    self._output(getattr(attention, name), at + name, heads=attention.head_dim)
            self._attention(attention.attn, at)
            self._output(attention.o_proj, at + "attn_out")
            self._norm(layer.post_attention_layernorm, at + "mlp_norm", at + "attn_resid")
            inner = mlp.gate_up_proj.output_size_per_partition // 2
            self._output(mlp.gate_up_proj, [at + "gate_proj", at + "up_proj"], [inner, inner])
            self._output(mlp.act_fn, at + "mlp_act")
            self._output(mlp.down_proj, at + "mlp_out")
            stream = at + "out"
        self._norm(model.model.norm, "final_norm", stream)

    def _after(self, module: Any, look: Callable[[Any], None]) -> None:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            if self._step is not None:
                self.session.guard(lambda: look(out))

        self._undo.append(module.register_forward_hook(hook).remove)

    def _output(self, module: Any, taps: Any, sizes: Optional[list[int]] = None, heads: int = 0) -> None:
        """What a module returns: one tap, or with `sizes` the parts of its last axis."""

        def look(out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out  # a product returns its bias beside it
            for tap, part in zip(*([taps], [out]) if sizes is None else (taps, out.split(sizes, dim=-1))):
                self._take(tap, part, heads)

        self._after(module, look)

    def _norm(self, module: Any, tap: str, stream: Optional[str]) -> None:
        """A norm, and the sum it made of the residual stream and a branch."""

        def look(out: Any) -> None:
            if isinstance(out, tuple):
                out, summed = out
                self._take(stream, summed)
            self._take(tap, out)

        self._after(module, look)

    def _attention(self, attention: Any, at: str) -> None:
        implementation = attention.impl
        original = implementation.forward

        @functools.wraps(original)
        def forward(layer: Any, query: Any, key: Any, value: Any, cache: Any, metadata: Any, *args: Any, **kwargs: Any):
            if self._step is not None:
                self.session.guard(lambda: self._read(at, attention, query, key, cache, metadata))
            result = original(layer, query, key, value, cache, metadata, *args, **kwargs)
            if self._step is not None:
                output = kwargs["output"] if "output" in kwargs else args[0]
                self.session.guard(lambda: self._take(at + "attn_heads", output, attention.head_size))
            return result

        implementation.forward = forward
        self._undo.append(lambda: delattr(implementation, "forward"))  # the class has the original

    # ---- one call of the model ----

    def _begin(self, _module: Any, args: tuple, kwargs: dict) -> None:
        self._flush()
        if self.session.alive:
            self._step = self.session.guard(lambda: self._start(*args, **kwargs))

    def _start(self, input_ids: Any, positions: Any, *_: Any, **__: Any) -> Optional[Step]:
        from vllm.forward_context import get_forward_context

        metadata = get_forward_context().attn_metadata
        if not metadata:
            return None  # a profiling or warm-up run
        if input_ids is None:
            self.session.fail("the model was called with inputs_embeds; a trace needs token ids")
            return None
        batch = next(iter(metadata.values()))
        self._rows = int(batch.num_actual_tokens)
        starts = batch.query_start_loc.tolist()
        requests = self.runner.input_batch.req_ids
        self._lengths = [end - start for start, end in zip(starts, starts[1:])][: len(requests)]
        self._ends = batch.seq_lens[: len(requests)].tolist()
        tokens, positions = input_ids[: self._rows].tolist(), positions[: self._rows].tolist()
        sequence: list[int] = []
        forks, row = [], 0
        for index, (request, length) in enumerate(zip(requests, self._lengths)):
            start = positions[row]
            if request not in self._numbers:
                number = self._numbers[request] = len(self._tokens)
                prefix = self.runner.input_batch.token_ids_cpu[index, :start].tolist()
                if start and (parent := self._holder(prefix)) is not None:
                    forks.append([number, parent, start])
                self._tokens.append(prefix)
            number = self._numbers[request]
            self._tokens[number][start:] = tokens[row : row + length]
            sequence += [number] * length
            row += length
        step = Step(tokens, positions, sequence if any(sequence) else None)
        if forks:
            step.taps["fork"] = np.array(forks, np.int64)
        return step

    def _holder(self, prefix: list[int]) -> Optional[int]:
        """A sequence whose first tokens are these: the cache's blocks are shared by their tokens alone."""
        known = enumerate(self._tokens)
        return next((number for number, tokens in known if tokens[: len(prefix)] == prefix), None)

    def _take(self, tap: Optional[str], value: torch.Tensor, heads: int = 0) -> None:
        if self._step is None or tap is None:
            return
        value = value[: self._rows]
        if heads:
            value = value.reshape(value.shape[0], -1, heads)
        self._step.taps[tap] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    def _logits(self, out: Any) -> None:
        # other ranks get none; a second call is for the prompt's log probabilities
        if out is None or "logits" in self._step.taps:
            return
        self._step.taps["logits"] = out[:, : self.text.vocab_size].detach().clone()
        if out.shape[0] != self._rows:
            ends = np.cumsum(self._lengths) - 1
            self._step.taps["logits_rows"] = ends.astype(np.int64)

    def _sampled(self, out: Any) -> None:
        chosen = out.sampled_token_ids[:, 0].tolist()
        # a request that is still inside its prompt is sampled too, and the token thrown away
        held = [self.runner.requests[request].num_tokens for request in self.runner.input_batch.req_ids]
        chosen = [token if end >= all else -1 for token, end, all in zip(chosen, self._ends, held)]
        if len(chosen) > 1 or chosen[0] >= 0:
            self._step.sampled = chosen

    # ---- attention and its cache ----

    def _read(self, at: str, layer: Any, query: Any, key: Any, cache: Any, metadata: Any) -> None:
        self._take(at + "q_rope", query, layer.head_size)
        self._take(at + "k_rope", key, layer.head_size)
        if not self.caches:
            return
        layout = _LAYOUTS.get(layer.attn_backend.get_name())
        if layout is None:
            self.session.note(f"k_cache left out: the layout of {layer.attn_backend.get_name()} is not known")
            return
        slots = cache.shape[2]
        parts: list[list[torch.Tensor]] = [[], []]
        for request, end in enumerate(self._ends):
            blocks = metadata.block_table[request, : -(-end // slots)].long()
            for part, held in zip(parts, layout(cache[blocks], layer.head_size)):
                # blocks, heads, slots, D to keys, heads, D
                part.append(held.transpose(1, 2).flatten(0, 1)[:end])
        scales = (layer._k_scale_float, layer._v_scale_float)
        for tap, held, scale in zip(("k_cache", "v_cache"), map(torch.cat, parts), scales):
            if held.element_size() == 1:
                held = held.contiguous().view(_FLOAT8[layer.kv_cache_dtype]).float() * scale
            self._step.taps[at + tap] = held.contiguous().clone()
        if len(self._tokens) > 1:  # of a single sequence there is no doubt
            numbers = [self._numbers[request] for request in self.runner.input_batch.req_ids]
            self._step.taps["key_sequence"] = np.repeat(np.array(numbers, np.int64), self._ends)
            self._step.taps["key_position"] = np.concatenate([np.arange(end, dtype=np.int64) for end in self._ends])

    def _flush(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            self.session.guard(lambda: self._write(step))

    def _write(self, step: Step) -> None:
        taps = {tap: value if isinstance(value, np.ndarray) else _array(value) for tap, value in step.taps.items()}
        self.session.write(step, taps)


def _key_major(blocks: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's CPU kernels: of a head's block the first half are keys, channel by channel, then values, slot by slot."""
    count, heads, slots, _ = blocks.shape
    keys, values = blocks.view(count, heads, 2, slots * size).unbind(2)
    return keys.view(count, heads, size, slots).transpose(2, 3), values.view(count, heads, slots, size)


# backend -> keys and values of some blocks, each blocks, heads, slots, D
_LAYOUTS = {"CPU_ATTN": _key_major}


def _array(value: torch.Tensor) -> Array:
    value = value.contiguous()
    if value.dtype == torch.bfloat16:
        return Raw(value.view(torch.int16).numpy(), "BF16", tuple(value.shape))
    return value.numpy()


# ---- tensor parallel parts ----


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank-{rank}")


def join(path: Path, ranks: int) -> None:
    """One trace of the ranks' parts: what is spread is put side by side, the rest is the first rank's."""
    from safetensors import safe_open

    parts = [_part(path, rank) for rank in range(ranks)]
    about = json.loads((parts[0] / "trace.json").read_text())
    path.mkdir(parents=True)
    steps = min(len(list(part.glob("step-*.safetensors"))) for part in parts)
    for index in range(steps):
        name = f"step-{index:06d}.safetensors"
        opened = [safe_open(part / name, "pt") for part in parts]
        joined = {}
        for tap in opened[0].keys():
            values = [one.get_tensor(tap) for one in opened]
            axis = _SPREAD.get(tap.rpartition(".")[2])
            joined[tap] = _array(values[0] if axis is None else torch.cat(values, dim=axis))
        write_safetensors(path / name, joined)
    (path / "trace.json").write_text(json.dumps(about, indent=1) + "\n")
    for part in parts:
        shutil.rmtree(part)
