"""Records llama.cpp through llama-cpp-python: architectures llama, qwen2, qwen3, qwen3moe and gemma3.

    import firstdiff.llama_cpp
    from llama_cpp import Llama

    llama = Llama("model.gguf", logits_all=True)
    with firstdiff.llama_cpp.record(llama, "my.trace"):
        llama("Once upon a time", max_tokens=16)

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

import llama_cpp
from llama_cpp import _internals

from . import _ggml
from ._ggml_taps import Evaluation, Node, classify, recorded
from ._recorder import BaseRecorder
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
        try:
            super().decode(batch)
            whole = True
        finally:
            self.recorder.decoded(whole)


class Recorder(BaseRecorder):
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
        self._pending: Optional[Step] = None  # written once the token chosen after it is known
        self._cell_of: dict[int, int] = {}
        self._sequence = -1
        self._weights: dict[int, set[str]] = {}
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
                self._pending.sampled = int(token)
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
        self._flush()
        self._describe_weights()

    # ---- the callback -----------------------------------------------------------------------------------------

    def _evaluated(self, pointer: int, ask: bool, _data: Any) -> bool:
        """llama.cpp asks whether a node is wanted, then shows it computed; False on showing would stop the engine."""
        if not self.session.alive:
            return not ask
        try:
            node, tensor = self._node(pointer)
            if ask:
                return node is not None and (
                    not node.taps or node.kind in _ALWAYS or (self._wanted and any(map(self.wants, node.taps)))
                )
            if node is not None:
                self._show(node, tensor)
        except Exception as error:
            self.session.fail(error)
        except BaseException as error:  # an interrupt: an exception cannot pass through C, it is raised after decode
            self._interrupted = error
        return not ask

    def _node(self, pointer: int) -> tuple[Optional[Node], _ggml.Tensor]:
        if not self._checked:
            _ggml.check_layout(pointer)
            self._checked = True
        tensor = _ggml.Tensor.from_address(pointer)
        names = [tensor.src[index].contents.name.decode() if tensor.src[index] else "" for index in (0, 1)]
        return classify(_ggml.operation(pointer), tensor.name.decode(), *names), tensor

    def _show(self, node: Node, tensor: _ggml.Tensor) -> None:
        if node.kind == "tokens":
            self._end()  # a prompt longer than n_ubatch is evaluated in several graphs
            number = self.steps + (self._pending is not None)
            if self.selection.is_past(number):
                self._flush()
                self.session.finish()
                return
            self._wanted = self.selection.wants_step(number)
            self._now = Evaluation(self.wants if self._wanted else _nothing, self.session, self._cell_of)
        if self._now is not None:
            self._now.take(node, tensor)

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
        if now.positions is None:
            raise RuntimeError("no rotary embedding was seen, so the tokens' positions are unknown")
        if len(now.positions) != len(now.token_ids):
            raise RuntimeError(f"{len(now.token_ids)} tokens have {len(now.positions)} positions")
        if bool((now.positions[1:] <= now.positions[:-1]).any()):
            raise RuntimeError("a batch of several sequences; record one sequence at a time")
        self._flush()
        for kind, buffers in now.weights.items():
            self._weights.setdefault(kind, set()).update(buffers)
        if now.flash:
            self._arithmetic(attention="ggml-flash", attention_accumulate="f16")
        if now.positions[0] == 0:
            self._sequence += 1  # a new prompt: earlier keys are gone
        sequence = max(self._sequence, 0)
        self._pending = Step(
            now.token_ids.tolist(),
            now.positions.tolist(),
            [sequence] * len(now.token_ids) if sequence else None,
            taps=now.finish(self._heads, self._head_size, self._interleaved),
        )

    def _flush(self) -> None:
        step, self._pending = self._pending, None
        if step is not None:
            self.session.write(step, step.taps)

    def _arithmetic(self, **values: Any) -> None:
        self.session.writer.update_nested("arithmetic", values)

    def _describe_weights(self) -> None:
        names = {_ggml.type_name(kind): _ggml.activation_type(kind) for kind in sorted(self._weights)}
        self._arithmetic(matmul_input_types={name: kind for name, kind in names.items() if kind})
        held = {_ggml.type_name(kind): sorted(buffers) for kind, buffers in sorted(self._weights.items())}
        self.session.writer.update_nested("environment", {"weight_buffers": held})


# these carry token ids and positions, without which there is no step, or the place of keys in the cache
_ALWAYS = ("tokens", "rotated")


def _nothing(_tap: str) -> bool:
    return False


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
