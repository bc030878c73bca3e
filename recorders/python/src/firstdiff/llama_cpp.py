"""Records llama.cpp through llama-cpp-python: architectures llama, qwen2, qwen3, qwen3moe and gemma3.

    import firstdiff.llama_cpp
    from llama_cpp import Llama

    llama = Llama("model.gguf", logits_all=True)
    with firstdiff.llama_cpp.record(llama, "my.trace"):
        llama("Once upon a time", max_tokens=16)

    python -m firstdiff.llama_cpp model.gguf --prompt "Once upon a time" -o my.trace

llama.cpp need not be built again. What is asked for decides what it computes in one go: each recorded tensor cuts its
graph, and nothing is fused across a cut. `taps="out"` asks for the layers' outputs alone and leaves everything inside a
layer, fused kernels included, as it is without recording.

llama.cpp takes its evaluation callback when a context is made, so inside the block `llama` works on a second context
with the same parameters and an empty KV cache; afterwards its own context is back as it was. Results are bit for bit
the same with recording on. Without `logits_all` llama.cpp computes the end of the last layer for one row per prompt
only, and the trace lacks those taps. Queries and keys of llama files are put back into the checkpoint's order.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any, Iterable, Optional, Union

import numpy as np

from . import _cli

with _cli.needs("llama-cpp", __name__ == "__main__"):
    import llama_cpp
    from llama_cpp import _internals

    from . import _ggml
    from ._ggml_taps import Evaluation, Shown, look, recorded
from ._recorder import StepRecorder
from ._selection import Numbers
from ._session import RecorderWarning, Step

__all__ = ["Recorder", "RecorderWarning", "record"]

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma3")
_FAMILIES = {"qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}  # where the checkpoint calls itself otherwise


def record(
    llama: "llama_cpp.Llama",
    path: Any,
    *,
    layers: Numbers = None,
    taps: Union[str, Iterable[str], None] = None,
    steps: Numbers = None,
    max_bytes: Union[str, int, None] = None,
    overwrite: bool = False,
) -> "Recorder":
    """Writes a trace of every graph that `llama` evaluates inside the `with` block, one step per (micro)batch.

    `layers` and `steps` are numbers and ranges (`"0-3,7"`), `taps` patterns over tap names (`layers.*.out`, `logits`); None
    is all. The trace grows no larger than `max_bytes` (`"2GB"`). `overwrite=True` replaces an older trace.
    """
    return Recorder(llama, path, layers=layers, taps=taps, steps=steps, max_bytes=max_bytes, overwrite=overwrite)


class _Context(_internals.LlamaContext):
    """A context that tells the recorder where each decode ends."""

    recorder: "Recorder"

    def decode(self, batch: Any) -> None:
        whole = False
        self.recorder.session.guard(lambda: self.recorder.decodes(batch.batch))
        try:
            super().decode(batch)
            whole = True
        finally:
            self.recorder.decoded(whole)


class Recorder(StepRecorder):
    """The second context of one `record` block, and its callback."""

    producer = "firstdiff.llama_cpp"
    nothing = "llama.cpp evaluated nothing inside the block"

    def __init__(self, llama: Any, path: Any, **selection: Any) -> None:
        architecture = getattr(llama, "metadata", {}).get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise TypeError(f"firstdiff.llama_cpp records {', '.join(ARCHITECTURES)}; this model is {architecture}")
        if llama.lora_path:
            raise TypeError("a LoRA adapter changes the model; merge it into the file to record it")
        if isinstance(llama._ctx, _Context):
            raise TypeError("this Llama is being recorded already; end that recording before the next one begins")
        _ggml.check_layout()
        super().__init__(path, **selection)
        self.llama = llama
        self._architecture = architecture
        self._heads = int(llama.metadata[f"{architecture}.attention.head_count"])
        width = int(llama.metadata[f"{architecture}.embedding_length"])
        self._head_size = int(llama.metadata.get(f"{architecture}.attention.key_length", width // self._heads))
        self._interleaved = architecture == "llama"
        self._now: Optional[Evaluation] = None
        self._cell_of: dict[int, int] = {}
        self._sequence = -1
        self._weights: dict[int, set[str]] = {}
        self._is_flash = False
        self._shown: dict[int, Shown] = {}  # by address
        self._reader = _ggml.Reader()
        self._cells_asked: set[int] = set()
        in_cells = ("k_cache", "v_cache", "attn_scores", "attn_probs")
        layers = range(int(llama.metadata[f"{architecture}.block_count"]))
        self._needs_cells = self.wants_any(f"layers.{layer}.{tap}" for layer in layers for tap in in_cells)
        self._batch: tuple[np.ndarray, ...] = ()  # tokens and positions of the running decode that no graph has had yet
        self._checked = False
        self._wanted = True  # whether the step that is computed now is asked for, beside its tokens
        self._interrupted: Optional[BaseException] = None

    def _describe(self) -> dict[str, Any]:
        return _describe(self.llama, self._architecture)

    def _announce(self) -> None:
        number = lambda key, default=0: int(self.llama.metadata.get(f"{self._architecture}.{key}", default))
        sizes = {
            "d": number("embedding_length"), "F": number("expert_feed_forward_length", number("feed_forward_length")),
            "H": self._heads, "Hkv": number("attention.head_count_kv", self._heads), "D": self._head_size,
            "V": self.llama.n_vocab(), "E": number("expert_count"), "k": number("expert_used_count"),
        }  # fmt: skip
        rows = None if self.llama._logits_all else 1
        self.selection.announce(
            recorded(self._architecture), sizes, number("block_count"), prompt=self.prompt, new=self.new, logits=rows
        )

    # ---- on and off -------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        llama = self.llama
        params = type(llama.context_params).from_buffer_copy(llama.context_params)
        # kept as long as the context lives: C calls it
        self._callback = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(self._evaluated)
        params.cb_eval = self._callback
        context = _Context(model=llama._model, params=params, verbose=llama.verbose)
        context.recorder = self
        own = (llama._ctx, llama.n_tokens, llama.input_ids.copy(), llama._requires_eval)
        sample, own_sample = llama.sample, vars(llama).get("sample")

        def sampled(*args: Any, **kwargs: Any) -> int:
            token = sample(*args, **kwargs)
            index = kwargs.get("idx")
            if self._pending is not None and index in (None, llama.n_tokens - 1) and llama.draft_model is None:
                self.sampled(token)
            return token

        def restore() -> None:
            llama._ctx, llama.n_tokens, llama.input_ids[:], llama._requires_eval = own
            if own_sample is None:
                vars(llama).pop("sample", None)
            else:
                llama.sample = own_sample
            context.close()

        llama._ctx = context
        llama.n_tokens, llama._requires_eval = 0, True
        llama.sample = sampled
        self._undo.append(restore)

    def _last(self) -> None:
        self._now = None
        super()._last()
        self._describe_weights()

    # ---- the callback -----------------------------------------------------------------------------------------

    def _evaluated(self, pointer: int, ask: bool, _data: Any) -> bool:
        """llama.cpp asks whether a node is wanted, then shows it computed; False on showing would stop the engine.

        It asks for each of a graph's thousand nodes, for each token: what a node is, is worked out once.
        """
        if not self.session.alive:
            return not ask
        try:
            shown = self._shown.get(pointer)
            if not ask:
                if self._now is not None and shown.asked:
                    self._now.take(shown)
                else:
                    self._show(shown)
                return True
            if shown is None or shown.tensor.raw != shown.identity:
                shown = self._look(pointer)
            asked = shown.asked
            return self._asks(shown) if asked is None else asked and self._wanted
        except Exception as error:
            self.session.fail(error)
        except BaseException as error:  # an interrupt: an exception cannot pass through C, it is raised after decode
            self._interrupted = error
        return not ask

    def _look(self, pointer: int) -> Shown:
        if not self._checked:
            _ggml.check_layout(pointer)
            self._checked = True
        shown = self._shown[pointer] = look(pointer, self.wants, self._weights)
        self._is_flash |= shown.node is not None and shown.node.kind == "flash"
        return shown

    def _asks(self, shown: Shown) -> bool:
        """Whether a node must be shown. Each one that is cuts the graph, so that nothing is fused across it."""
        kind = shown.node.kind
        if kind == "tokens":
            self._cells_asked.clear()  # a graph begins
            return True
        if kind == "cells":
            # all layers of a kind share the tensor that says where in the cache the new keys go
            asked = not self._needs_cells or shown.sources[1] in self._cells_asked
            self._cells_asked.add(shown.sources[1])
            return not asked
        return True  # which rows go on, and no tap of its own

    def _show(self, shown: Shown) -> None:
        if shown.node.kind == "tokens":
            self._end()  # a prompt longer than n_ubatch is evaluated in several graphs
            number = self._number()
            if self.selection.is_past(number):
                self._flush()
                self.session.finish()
                return
            self._wanted = self.selection.wants_step(number)
            interleaved = self._head_size if self._interleaved else None
            now = Evaluation(self._wanted, self.session, self._cell_of, self._reader.read, interleaved)
            now.take(shown)
            now.positions = self._positions(now.token_ids)
            self._now = now
        elif self._now is not None:
            self._now.take(shown)

    def _positions(self, token_ids: np.ndarray) -> np.ndarray:
        """Those of the next tokens of the batch: it is evaluated in parts, in order."""
        tokens, positions = (part[: len(token_ids)] for part in self._batch)
        if not np.array_equal(tokens, token_ids):
            raise RuntimeError("a batch of several sequences, or one that llama.cpp reorders; record one sequence at a time")
        self._batch = tuple(part[len(token_ids) :] for part in self._batch)
        return positions

    def decodes(self, batch: Any) -> None:
        """A call of decode begins: its tokens and their positions."""
        if not batch.token or not batch.pos:
            raise RuntimeError("a batch without token ids or positions; a trace needs both")
        read = lambda part: np.ctypeslib.as_array(part, (batch.n_tokens,)).astype(np.int64)
        self._batch = read(batch.token), read(batch.pos)

    def decoded(self, whole: bool) -> None:
        """A call of decode has ended; one that failed leaves no step."""
        if whole:
            self.session.guard(self._end)
        self._now = None
        interrupted, self._interrupted = self._interrupted, None
        if interrupted is not None:
            raise interrupted

    def _end(self) -> None:
        now, self._now = self._now, None
        if now is None:
            return
        if bool((now.positions[1:] <= now.positions[:-1]).any()):
            raise RuntimeError("a batch of several sequences; record one sequence at a time")
        if now.positions[0] == 0:
            self._sequence += 1  # a new prompt: earlier keys are gone
        sequence = max(self._sequence, 0)
        self._add(
            Step(
                now.token_ids.tolist(),
                now.positions.tolist(),
                [sequence] * len(now.token_ids) if sequence else None,
                taps=now.finish(self._heads),
            )
        )

    def _arithmetic(self, **values: Any) -> None:
        self.session.writer.update_nested("arithmetic", values)

    def _describe_weights(self) -> None:
        if self._is_flash:
            self._arithmetic(attention="ggml-flash", attention_accumulate="f16")
        names = {_ggml.type_name(kind): _ggml.activation_type(kind) for kind in sorted(self._weights)}
        self._arithmetic(matmul_input_types={name: kind for name, kind in names.items() if kind})
        held = {_ggml.type_name(kind): sorted(buffers) for kind, buffers in sorted(self._weights.items())}
        self.session.writer.update_nested("environment", {"weight_buffers": held})


def _describe(llama: Any, architecture: str) -> dict[str, Any]:
    params = llama.context_params
    keys, values = (_ggml.type_name(kind) for kind in (params.type_k, params.type_v))
    return {
        "model": {"name": llama.metadata.get("general.name") or os.path.basename(llama.model_path),
                  "family": _FAMILIES.get(architecture, architecture), "file": os.path.basename(llama.model_path)},
        "arithmetic": {"weights": "gguf", "activations": "f32", "matmul_inputs": "ggml-q8", "accumulate": "f32",
                       "kv_cache": keys if keys == values else f"{keys}/{values}", "attention": "ggml"},
        "environment": {"python": platform.python_version(), "llama_cpp": version("llama-cpp-python"),
                        "system": llama_cpp.llama_print_system_info().decode().strip(),
                        "n_threads": params.n_threads, "n_threads_batch": params.n_threads_batch,
                        "n_ctx": params.n_ctx, "n_batch": params.n_batch, "n_ubatch": params.n_ubatch,
                        "flash_attn_type": params.flash_attn_type, "n_gpu_layers": llama.model_params.n_gpu_layers},
        "stop_ids": _stop_ids(llama),
    }


def _stop_ids(llama: Any) -> list[int]:
    vocabulary = llama_cpp.llama_model_get_vocab(llama._model.model)
    return [token for token in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]


# ---- python -m firstdiff.llama_cpp ---------------------------------------------------------------------------------


def _run(options: Any) -> "_cli.Run":
    if not os.path.isfile(options.model):
        raise ValueError(f"{options.model} is no file; llama.cpp runs GGUF files")
    how = {"n_threads": options.threads, "n_threads_batch": options.threads} if options.threads else {}
    load = lambda size: llama_cpp.Llama(
        options.model, n_ctx=size, logits_all=True, flash_attn=options.flash, n_gpu_layers=options.gpu_layers, verbose=False,
        **how,
    )  # fmt: skip
    if options.tokens:
        tokens = options.tokens
    else:
        vocabulary = llama_cpp.Llama(options.model, vocab_only=True, verbose=False)
        tokens = vocabulary.tokenize(options.prompt.encode())
    llama = load(len(tokens) + options.new + 1)
    if bad := [token for token in tokens if token >= llama.n_vocab()]:
        raise ValueError(f"token id {bad[0]} is none of this model's {llama.n_vocab()}")
    recorder = Recorder(llama, options.output, **_cli.selection(options))
    recorder.prompt, recorder.new = len(tokens), options.new
    made: list[int] = []
    stops = set(_stop_ids(llama))
    with recorder:
        if options.prompt is not None:
            recorder.session.guard(lambda: recorder.session.writer.update(prompt=options.prompt))
        llama.eval(tokens)
        while len(made) < options.new:
            made.append(int(llama.sample(temp=0.0)))
            if len(made) == options.new or made[-1] in stops:
                break
            llama.eval(made[-1:])
    return _cli.Run(recorder, made, llama.detokenize(made).decode(errors="replace"))


def _main() -> None:
    options = _cli.parser("llama_cpp", "Runs a GGUF file with llama.cpp and records it.", "a GGUF file")
    options.add_argument("--flash", action="store_true", help="flash attention: no scores and no probabilities are shown")
    options.add_argument("--threads", type=int, help="threads (default: llama.cpp's)")
    options.add_argument("--gpu-layers", type=int, default=0, help="layers on the GPU, -1 for all (default 0)")
    _cli.main(_run, options)


if __name__ == "__main__":
    _main()
