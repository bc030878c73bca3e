"""Records Hugging Face transformers: Llama, Qwen2 / Qwen2.5, Qwen3 (dense and MoE), Gemma 3 (eager or sdpa attention); DeepSeek-V4.

    import firstdiff.transformers

    with firstdiff.transformers.record(model, "my.trace"):
        model.generate(**inputs, max_new_tokens=16)      # or model(...), with any cache, in any chunks

    python -m firstdiff.transformers MODEL --prompt "Once upon a time" -o my.trace

Every tensor is copied the moment the model produces it, so a buffer that is overwritten later is still seen as it was.
Only what the model holds is recorded: sdpa shows no scores and no probabilities. Outputs are bit for bit the same with
recording on. A failure of the recorder is warned about once and ends the recording, never the model's run.

A trace must say of each token which sequence it belongs to and what came before it. Where that cannot be known, one
warning says why and the recording ends: a key/value cache that was filled before or elsewhere, beam search, compiled
models, layers left out, quantised caches. Of two threads that call the model at once, the first is recorded. Caches that
are copied, cut back or reused, rows that change places, prompts in chunks, and rejected drafts are followed.

Tested with transformers 5.0.0, and with the newest release; the names that changed in between are in `_cache`.
"""

from __future__ import annotations

import functools
import re
import threading
from typing import Any, Callable, Iterable, Optional, Union

from . import _cli

with _cli.needs("transformers", __name__ == "__main__"):
    import torch
    from torch import nn

    from . import _cache, _deepseek_v4
    from ._attention import ProductWatcher, ScoreWatcher, watch
    from ._describe import DTYPES, describe, sampling, sizes
    from ._forward import Forward, by_name, is_one_sequence, read_call, rows_of
    from ._generate import Generation, Turn, setting
from ._recorder import BaseRecorder
from ._selection import Numbers
from ._session import RecorderWarning, Refused, Step
from ._taps import INPUT_OF, module_taps, split, tap_of
from ._wrap import around
from .trace import Array, Raw

__all__ = ["Recorder", "RecorderWarning", "record"]

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "deepseek_v4")

_LAYER = re.compile(r"^layers\.\d+\.")
_NO_STEP = (
    "no call of the model was seen: it was not called inside the block, or only through a copy that torch.compile had made "
    "before, which runs no hooks"
)
_TWO_THREADS = "two threads called the model at the same time: only the calls of the first one are recorded"
# what a layer of every family shows, but for mixtures of experts, which have no gate, up and down of their own
_PLAIN = ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "mlp_norm", "gate_proj", "up_proj", "mlp_out")
_ATTENTION_TAPS = ("q_rope", "k_rope", "k_cache", "v_cache", "attn_scores", "attn_probs", "attn_heads")


def record(
    model: nn.Module,
    path: Any,
    *,
    layers: Numbers = None,
    taps: Union[str, Iterable[str], None] = None,
    steps: Numbers = None,
    max_bytes: Union[str, int, None] = None,
    attention: bool = True,
    overwrite: bool = False,
    tokenizer: Any = None,
) -> "Recorder":
    """Writes a trace of every call of `model` inside the `with` block.

    `layers` and `steps` are numbers and ranges (`"0-3,7"`), `taps` patterns over tap names (`layers.*.out`, `logits`); None
    is all. The trace grows no larger than `max_bytes` (`"2GB"`). `attention=False` leaves attention functions alone: module
    outputs only. `overwrite=True` replaces an older trace. `tokenizer` only serves to write the prompt's text into trace.json.
    """
    return Recorder(
        model, path, layers=layers, taps=taps, steps=steps, max_bytes=max_bytes, attention=attention, overwrite=overwrite,
        tokenizer=tokenizer,
    )  # fmt: skip


class Recorder(BaseRecorder):
    """The hooks of one `record` block."""

    producer = "firstdiff.transformers"
    nothing = _NO_STEP

    def __init__(
        self, model: Any, path: Any, *, attention: bool = True, tokenizer: Any = None, **selection: Any
    ) -> None:
        family = getattr(getattr(model, "config", None), "model_type", None)
        if family not in FAMILIES or not hasattr(getattr(model, "model", None), "layers"):
            raise TypeError(
                f"firstdiff.transformers records causal language models of {', '.join(FAMILIES)}; "
                f"this is {type(model).__name__} ({family})"
            )
        super().__init__(path, **selection)
        self.model = model
        self.tokenizer = tokenizer
        self.attention = attention
        self.implementation = model.config._attn_implementation or "eager"
        self._layers = model.config.num_hidden_layers
        self._running: Optional[Forward] = None  # the call that runs now
        self._pending: Optional[Forward] = None  # a finished call whose sampled token is not known yet
        self._generation: Optional[Generation] = None  # set while generate runs
        self._turn = Turn()
        self._restore_cache: Optional[Callable[[], None]] = None
        self._caches = _cache.Caches()
        self._saw_compiling = False
        self._hooked = False  # whether every call must show the output of some module
        self._taken: dict[str, None] = {}  # the taps that are hooked, without their layers
        self._formats: dict[str, set[str]] = {}  # taps, their layers as `*` -> in which formats they were held

    def _describe(self) -> dict[str, Any]:
        return describe(self.model, self.implementation)

    def _announce(self) -> None:
        rows = None if self.new is None else 1  # generate asks for the last row of the prompt's logits alone
        self.selection.announce(
            self._taken, sizes(self.model.config), self._layers, element=self.model.dtype.itemsize,
            prompt=self.prompt, new=self.new, logits=rows,
        )  # fmt: skip

    @property
    def _here(self) -> Optional[Forward]:
        """The call that runs now, in this thread."""
        call = self._running
        return call if call is not None and call.thread == threading.get_ident() else None

    @property
    def _current(self) -> Optional[Forward]:
        """The same, where its taps are asked for."""
        call = self._here
        return call if call is not None and call.wanted else None

    # ---- hooks on and off -------------------------------------------------------------------------------------

    def _attach(self) -> None:
        model, config = self.model, self.model.config
        _refuse_compiled(model)
        if config.model_type == "deepseek_v4":
            self._undo.append(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            self._undo.append(model.register_forward_hook(self._end, with_kwargs=True, always_call=True).remove)
            self._taken["logits"] = None
            _deepseek_v4.attach(self)
            self._wrap_generate()
            return
        self._undo.append(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        self._undo.append(model.register_forward_hook(self._end, with_kwargs=True, always_call=True).remove)
        self._taken["logits"] = None
        for name, module in model.model.named_children():
            if (tap := tap_of(name)) is not None:
                self._output(module, tap)
        for index, layer in enumerate(model.model.layers):
            self._layer(layer, index)
        watched = [
            layer.self_attn
            for index, layer in enumerate(model.model.layers)
            if any(self.wants(f"layers.{index}.{tap}") for tap in _ATTENTION_TAPS)
        ]
        if self.attention and watched:
            shown = (tap for tap in _ATTENTION_TAPS if self.implementation == "eager" or tap not in ("attn_scores", "attn_probs"))
            self._taken.update(dict.fromkeys(shown))
            self._undo.append(watch(self.implementation, watched, self._attend))
        self._wrap_generate()

    def _layer(self, layer: nn.Module, index: int) -> None:
        at, modules = f"layers.{index}.", dict(layer.named_modules())
        taps = {tap: modules[path] for tap, path in module_taps(modules).items()}
        mixture = hasattr(layer.mlp, "experts")
        needed = set(_PLAIN) - ({"gate_proj", "up_proj", "mlp_out"} if mixture else set())
        if lacking := sorted(needed - taps.keys()):
            raise Refused(f"layer {index} has no module by a name that is known for {', '.join(lacking)}")
        if mixture:
            for tap in ("router_logits", "experts_out", "mlp_out"):
                taps.pop(tap, None)
            self._mixture(layer.mlp, at)
        for tap, module in taps.items():
            given = INPUT_OF.get(tap)
            if given is not None and not (given == "attn_heads" and self.attention):
                self._input(module, at + given, self.model.config.num_attention_heads if given == "attn_heads" else None)
            # what the MLP gives is seen where the layer gets it: also where its own forward goes on after its last product
            self._output(layer.mlp if tap == "mlp_out" else module, at + tap)
        self._output(layer, at + "out")
        if self.attention and self._hooks(at + "k_rope"):
            hook = functools.partial(self._watch_cache, self.model.config.num_key_value_heads)
            self._undo.append(layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _last(self) -> None:
        self._flush()
        self._refuse_compiling()
        self._describe_formats()

    def _detach(self) -> None:
        super()._detach()
        self._unwatch_cache()
        self._running = None

    def _hooks(self, tap: str) -> bool:
        """Whether a tap is wanted; it then counts in the trace's size."""
        wanted = self.wants(tap)
        if wanted:
            self._taken.setdefault(split(tap)[1])
        return wanted

    def _output(self, module: nn.Module, tap: str) -> None:
        if self._hooks(tap):
            self._hooked = True

            def hook(_module: nn.Module, _args: tuple, out: Any) -> None:
                self._take(tap, out[0] if isinstance(out, tuple) else out)

            self._undo.append(module.register_forward_hook(hook).remove)

    def _mixture(self, mlp: nn.Module, at: str) -> None:
        """A router's product and choices, and the experts' sum, all of them rows of tokens without a batch axis."""
        logits, *taps = [at + name for name in ("router_logits", "router_weights", "router_topk")]

        def product(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            # what it returns first is the product, or what softmax made of it: that depends on the release
            if self._current is None or not self.session.alive:
                return inner(*args, **kwargs)
            with ProductWatcher(lambda value: self._take_rows(logits, value)):
                return inner(*args, **kwargs)

        def routed(_module: nn.Module, _args: tuple, out: Any) -> None:
            for tap, value in zip(taps, out[1:]):
                if self.wants(tap):
                    value = value.to(torch.int32) if tap.endswith("topk") else value
                    self._take_rows(tap, value)

        def summed(_module: nn.Module, _args: tuple, out: Any) -> None:
            self._take_rows(at + "experts_out", out)

        if self._hooks(logits):
            self._undo.append(around(vars(mlp.gate), "forward", mlp.gate.forward, product))
        if any([self._hooks(tap) for tap in taps]):
            self._undo.append(mlp.gate.register_forward_hook(routed).remove)
        if self._hooks(at + "experts_out"):
            self._undo.append(mlp.experts.register_forward_hook(summed).remove)

    def _take_rows(self, tap: str, value: torch.Tensor) -> None:
        """[B·T, …], as mixtures of experts hold it."""
        if self._current is not None:
            self._take(tap, value.unflatten(0, (self._current.batch, self._current.tokens)))

    def _input(self, module: nn.Module, tap: str, heads: Optional[int] = None, groups: bool = False) -> None:
        """What a module is given; with `groups`, heads lie in groups."""
        if self._hooks(tap):

            def hook(_module: nn.Module, args: tuple) -> None:
                self._take(tap, args[0].flatten(-2) if groups else args[0], heads)

            self._undo.append(module.register_forward_pre_hook(hook).remove)

    # ---- one call of the model --------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling():
            self._saw_compiling = True  # and nothing else, which could break the graph in two
            return
        if not self.session.alive:
            return
        if not self._turn.take("forward"):
            self.session.warn_and_note(_TWO_THREADS)
            return
        self._unwatch_cache()
        self._running = self.session.guard(lambda: self._start(by_name(module, args, kwargs)))

    def _start(self, named: dict[str, Any]) -> Optional[Forward]:
        cache = _cache.given(named)
        call = read_call(named, cache)
        if call is None:
            raise Refused("the model was called with inputs_embeds; a trace needs token ids")
        if self._pending is not None:
            if self._generation is not None and call.continues(self._pending):
                self._pending.sampled = self._generation.chosen(call.token_ids[:, 0].tolist())
            self._flush()
        if self.selection.is_past(self.steps):
            self.session.finish()
            return None
        call.wanted = self.selection.wants_step(self.steps)
        self._refuse_changes()
        _cache.refuse_quantised(cache)
        self._caches.begin(call)
        if self.tokenizer is not None and self.steps == 0:
            ids = call.kept_rows(call.token_ids).tolist()
            self.session.writer.update(prompt=self.tokenizer.decode(ids))
        return call

    def _end(self, _module: nn.Module, _args: tuple, _kwargs: dict, output: Any) -> None:
        """Runs after the model, also after one that raised; then there is no output and no step."""
        if torch.compiler.is_compiling():
            return
        call = self._here
        if call is not None:
            self._unwatch_cache()
            self._running = None
            if output is not None:
                self.session.guard(lambda: self._finish(call, output))
        self._turn.give("forward")

    def _finish(self, call: Forward, output: Any) -> None:
        if not call.taps and self._hooked and call.wanted:
            raise Refused("the model ran, but nothing inside it was seen: its forward is compiled or replaced")
        if self.wants("logits") and call.wanted:
            logits = getattr(output, "logits", None)
            logits = output[0] if logits is None and isinstance(output, tuple) else logits
            if logits is not None:
                self._keep_logits(call, logits)
        if call.cache is None:
            call.cache = _cache.returned(output)
            _cache.refuse_quantised(call.cache)
        self._caches.end(call, call.cache)
        prompt = self._generation.prompt_length if self._generation else None
        if prompt is None or call.visible < prompt:
            self._write(call)
        else:
            self._pending = call

    def _keep_logits(self, call: Forward, logits: torch.Tensor) -> None:
        kept = call.kept_logits(logits)
        if kept is None:
            self.session.note("logits of some steps left out: which tokens they belong to cannot be told from logits_to_keep")
            return
        values, rows = kept
        total = len(call.kept_rows(call.token_ids))
        if not rows.shape[0]:
            return
        call.taps["logits"] = _copy(values)
        if not torch.equal(rows, torch.arange(total - len(rows), total)) or (call.batch > 1 and len(rows) < total):
            call.taps["logits_rows"] = rows

    def _refuse_changes(self) -> None:
        """What the hooks rely on, and engines change while they generate."""
        self._refuse_compiling()
        config = self.model.config
        if config.num_hidden_layers != self._layers:
            raise Refused(
                f"the model was called with {config.num_hidden_layers} of its {self._layers} layers, as drafts with an early "
                "exit are; record without assistant_early_exit"
            )
        implementation = config._attn_implementation or "eager"
        if implementation != self.implementation:
            raise Refused(f"attention was changed from {self.implementation} to {implementation} while it was recorded")

    def _refuse_compiling(self) -> None:
        if self._saw_compiling:
            raise Refused("the model was compiled while it was recorded, and a compiled model shows nothing; record it eagerly")

    def _take(self, tap: str, value: torch.Tensor, heads: Optional[int] = None) -> None:
        call = self._current

        def take() -> None:
            rows = call.kept_rows(value)
            call.taps[tap] = _copy(rows.unflatten(-1, (heads, -1)) if heads else rows)

        if call is not None:
            self.session.guard(take)

    def keep(self, call: Forward, tap: str, value: torch.Tensor) -> None:
        """A value whose rows are not tokens."""
        call.taps[tap] = _copy(value)

    # ---- attention --------------------------------------------------------------------------------------------

    def _attend(self, inner: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any):
        call = self._current
        if call is None or not self.session.alive:
            return inner(module, query, key, value, *args, **kw)
        at = f"layers.{module.layer_idx}."
        self.session.guard(lambda: self._before_attention(call, at, query, key, value))
        watch_scores = is_one_sequence(call) and self.implementation != "sdpa" and self.wants(at + "attn_scores")
        if watch_scores:
            with ScoreWatcher(query, lambda scores: self.session.guard(lambda: self._square(call, scores))) as watcher:
                result = inner(module, query, key, value, *args, **kw)
            if watcher.scores is not None:
                call.taps[at + "attn_scores"] = watcher.scores
        else:
            result = inner(module, query, key, value, *args, **kw)
        self.session.guard(lambda: self._after_attention(call, at, result))
        return result

    def _before_attention(self, call: Forward, at: str, query: Any, key: Any, value: Any) -> None:
        if self.wants(at + "q_rope"):
            self._take(at + "q_rope", query.transpose(1, 2))
        if self.wants(at + "k_rope") and at + "k_rope" not in call.taps:
            # no cache took the new keys: they are what attention was given
            self._take(at + "k_rope", key[:, :, -call.tokens :].transpose(1, 2))
        for tap, held in (("k_cache", key), ("v_cache", value)):
            if self.wants(at + tap):
                if is_one_sequence(call):
                    call.taps[at + tap] = _copy(call.visible_keys(held[0].transpose(0, 1), axis=0))
                else:
                    self._keep_keys_of_batch(call, at, tap, held)

    def _keep_keys_of_batch(self, call: Forward, at: str, tap: str, held: torch.Tensor) -> None:
        keys, numbers, positions = call.all_keys(held)
        call.taps[at + tap] = _copy(keys)
        # layers with a window hold fewer keys than others
        at = "" if held.shape[2] >= call.visible else at
        call.taps[at + "key_sequence"], call.taps[at + "key_position"] = numbers, positions

    def _after_attention(self, call: Forward, at: str, result: Any) -> None:
        if self.wants(at + "attn_heads"):
            flat = result[0].dim() == 3
            self._take(at + "attn_heads", result[0], self.model.config.num_attention_heads if flat else None)
        if result[1] is not None and self.wants(at + "attn_probs"):
            if is_one_sequence(call):
                probs = self._square(call, result[1])
                if probs is not None:
                    call.taps[at + "attn_probs"] = probs
            else:
                self.session.note("attn_probs left out: in a batch no sequence sees the keys of another")

    def _square(self, call: Forward, value: torch.Tensor) -> Optional[torch.Tensor]:
        """[1, H, T, keys] of the engine -> [H, T, visible keys]."""
        if value.dim() != 4 or value.shape[2] != call.tokens:
            return None
        return _copy(call.visible_keys(call.kept_queries(value[0]), axis=2))

    def _watch_cache(self, kv_heads: int, module: Any, _args: tuple, kwargs: dict) -> None:
        """Sees the rotated keys on their way into the cache: what comes back out is `k_cache`, and may differ."""
        cache, call = _cache.given(kwargs), self._current
        if cache is None or call is None or self._restore_cache is not None or not self.session.alive:
            return

        def update(original: Any, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kw: Any) -> Any:
            tap = f"layers.{layer_idx}.k_rope"
            if self._current is call and key_states.shape[1] == kv_heads and self.wants(tap):
                self._take(tap, key_states.transpose(1, 2))
            return original(key_states, value_states, layer_idx, *args, **kw)

        self.wrap_update(cache, update)

    def wrap_update(self, cache: Any, update: Callable[..., Any]) -> None:
        """Puts a function around the cache's `update`, until `_unwatch_cache`."""
        self._restore_cache = self.session.guard(lambda: around(vars(cache), "update", cache.update, update))

    def _unwatch_cache(self) -> None:
        if self._restore_cache is not None:
            self._restore_cache()
            self._restore_cache = None

    # ---- generate, and writing --------------------------------------------------------------------------------

    def _wrap_generate(self) -> None:
        """For the token chosen after each step; only generate tells a chosen token from a given one."""
        model = self.model

        def generate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not self.session.alive:
                return original(*args, **kwargs)
            if not self._turn.take("generate"):
                self.session.warn_and_note(_TWO_THREADS)
                return original(*args, **kwargs)
            before, self._generation = self._generation, self.session.guard(lambda: Generation(model, args, kwargs))
            self.session.guard(lambda: self.session.writer.update(sampling=sampling(model, args, kwargs)))
            if model.device.type != "cpu" or setting(model, args, kwargs, "compile_config") is not None:
                kwargs.setdefault("disable_compile", True)  # a compiled forward has no hooks
            result = None
            try:
                result = original(*args, **kwargs)
            finally:
                self.session.guard(lambda: self._last_of_generate(result))
                self._generation = before
                self._turn.give("generate")
            return result

        self._undo.append(around(vars(model), "generate", model.generate, generate))

    def _last_of_generate(self, result: Any) -> None:
        if self._pending is not None:
            tokens, after = getattr(result, "sequences", result), self._pending.visible
            whole = isinstance(tokens, torch.Tensor) and tokens.dim() == 2 and tokens.shape[0] == self._pending.batch
            if self._generation is not None and whole and tokens.shape[1] > after:
                self._pending.sampled = self._generation.chosen(tokens[:, after].tolist())
            self._flush()

    def _flush(self) -> None:
        call, self._pending = self._pending, None
        if call is not None:
            self._write(call)

    def _write(self, call: Forward) -> None:
        token_ids, positions, sequence = rows_of(call)
        if not token_ids:
            return  # a chunk of a prompt that is all padding
        sampled = call.sampled if call.sampled and max(call.sampled) >= 0 else None
        step = Step(token_ids, positions, sequence, sampled)
        self.session.write(step, {tap: _array(value) for tap, value in call.taps.items()})
        for tap, value in call.taps.items():
            if value.is_floating_point():
                self._formats.setdefault(_LAYER.sub("layers.*.", tap), set()).add(DTYPES.get(value.dtype, "other"))

    def _describe_formats(self) -> None:
        """Which kinds of values are held in another format than most: router scores, logits, a residual in f32."""
        usual = {self.session.writer.metadata["arithmetic"]["activations"]}
        stored = {tap: min(formats) for tap, formats in self._formats.items() if len(formats) == 1 and formats != usual}
        if stored:
            self.session.writer.update_nested("arithmetic", {"stored": stored})


def _refuse_compiled(model: Any) -> None:
    """A compiled model runs no hooks that were added afterwards."""
    compiled = lambda module: (
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        or hasattr(module, "_orig_mod")
    )
    name = next((name or "the model" for name, module in model.named_modules() if compiled(module)), None)
    if name is not None:
        raise Refused(f"{name} is compiled, and a compiled model shows nothing; record the model before it is compiled")


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _array(value: torch.Tensor) -> Union[Array, Raw]:
    if value.dtype == torch.bfloat16:
        return Raw(value.view(torch.int16).numpy(), "BF16", tuple(value.shape))
    return value.numpy()


# ---- python -m firstdiff.transformers ------------------------------------------------------------------------------


def _run(options: Any) -> "_cli.Run":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = _cli.existing(options.model)
    how = {"attn_implementation": options.attention} if options.attention else {}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=options.dtype or "auto", **how).eval().to(options.device)
    tokenizer = None if options.tokens else AutoTokenizer.from_pretrained(name)
    tokens = options.tokens or tokenizer(options.prompt)["input_ids"]
    if bad := [token for token in tokens if token >= model.config.vocab_size]:
        raise ValueError(f"token id {bad[0]} is none of this model's {model.config.vocab_size}")
    ids = torch.tensor([tokens], device=options.device)
    recorder = Recorder(model, options.output, tokenizer=tokenizer, **_cli.selection(options))
    recorder.prompt, recorder.new = len(tokens), options.new
    with recorder, torch.no_grad():
        if options.new:
            mask = torch.ones_like(ids)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=options.new, do_sample=False, num_beams=1)[0]
        else:
            out = ids[0]
            model(ids)
    made = out[len(tokens) :].tolist()
    return _cli.Run(recorder, made, tokenizer.decode(made) if tokenizer else None)


def _main() -> None:
    options = _cli.parser(
        "transformers", "Runs a model with Hugging Face transformers and records it.",
        "a folder with config.json and safetensors, or a name on the hub", dtypes=True,
    )  # fmt: skip
    options.add_argument("--attention", choices=("eager", "sdpa"), help="attention implementation; eager shows scores, too")
    options.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    _cli.main(_run, options)


if __name__ == "__main__":
    _main()
