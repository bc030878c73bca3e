"""Records MLX through mlx-lm: Llama, Qwen2, Qwen3.

    import firstdiff.mlx_lm
    from mlx_lm import generate, load

    model, tokenizer = load("mlx-community/Qwen3-0.6B-bf16")
    with firstdiff.mlx_lm.record(model, "my.trace"):
        generate(model, tokenizer, "Once upon a time", max_tokens=16)

    python -m firstdiff.mlx_lm MODEL --prompt "Once upon a time" -o my.trace

MLX modules have no hooks, and Python looks `__call__` up on the type. So each watched module is of a subclass of its own
class for as long as recording lasts. MLX arrays are values: one that is kept shows what it was made from, even where the
cache behind it is written later. All of them are computed once, when the step ends; tokens are the same as without it.

One sequence at a time is recorded, in any chunks. What a trace cannot tell ends the recording with one warning: batches, a
cache that was filled before, calls inside `mx.compile`. A cache that is quantised or has dropped keys is not shown.
"""

from __future__ import annotations

import functools
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Union

import numpy as np

from . import _cli

with _cli.needs("mlx", __name__ == "__main__"):
    import mlx.core as mx
    import mlx.nn as nn
from ._recorder import StepRecorder
from ._selection import Numbers
from ._session import RecorderWarning, Refused, Step
from ._taps import INPUT_OF, module_taps, split, tap_of
from .trace import Array, Raw

__all__ = ["Recorder", "RecorderWarning", "record"]

FAMILIES = ("llama", "qwen2", "qwen3")

_DTYPES = {mx.float32: "f32", mx.bfloat16: "bf16", mx.float16: "f16"}
_ATTENTION = ("q_rope", "k_rope", "k_cache", "v_cache", "attn_heads")


def record(
    model: nn.Module,
    path: Any,
    *,
    layers: Numbers = None,
    taps: Union[str, Iterable[str], None] = None,
    steps: Numbers = None,
    max_bytes: Union[str, int, None] = None,
    overwrite: bool = False,
) -> "Recorder":
    """Writes a trace of every call of `model` inside the `with` block.

    `layers` and `steps` are numbers and ranges (`"0-3,7"`), `taps` patterns over tap names (`layers.*.out`, `logits`); None
    is all. The trace grows no larger than `max_bytes` (`"2GB"`). `overwrite=True` replaces an older trace.
    """
    return Recorder(model, path, layers=layers, taps=taps, steps=steps, max_bytes=max_bytes, overwrite=overwrite)


class Recorder(StepRecorder):
    """Watches one model for as long as a `with` block lasts."""

    producer = "firstdiff.mlx_lm"
    nothing = "the model was not called inside the block"

    def __init__(self, model: nn.Module, path: Any, **selection: Any) -> None:
        self._family = getattr(model, "model_type", None)
        if self._family not in FAMILIES or not hasattr(getattr(model, "model", None), "layers"):
            raise TypeError(f"firstdiff.mlx_lm records {', '.join(FAMILIES)}; this is {type(model).__name__} ({self._family})")
        super().__init__(path, **selection)
        self.model = model
        self._taken: dict[str, None] = {}  # the taps that are watched, without their layers
        self._now: dict[str, mx.array] = {}  # what the running call has shown
        self._wanted = True  # whether its taps are asked for, beside its tokens
        self._at = ""  # the layer whose attention runs
        self._rotated = 0  # how often it has rotated
        self._caches = _Caches()

    # ---- on and off -------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        model = self.model
        self._watch(model, after=self._step, before=self._begin)
        self._taken["logits"] = None
        for name, module in model.model.children().items():
            if isinstance(module, nn.Module) and (tap := tap_of(name)) is not None:
                self._output(module, tap)
        for index, layer in enumerate(model.model.layers):
            self._layer(layer, f"layers.{index}.")
        # the function by which a model's module reaches attention
        namespace = vars(sys.modules[type(model).__module__])
        plain = namespace["scaled_dot_product_attention"]

        @functools.wraps(plain)
        def attend(queries: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> mx.array:
            out = plain(queries, keys, values, *args, **kwargs)
            if self._at:
                self.session.guard(lambda: self._attended(keys, values, out))
            return out

        namespace["scaled_dot_product_attention"] = attend
        self._undo.append(lambda: namespace.__setitem__("scaled_dot_product_attention", plain))

    def _layer(self, layer: nn.Module, at: str) -> None:
        modules = dict(layer.named_modules())
        taps = {tap: modules[path] for tap, path in module_taps(path for path in modules if path).items()}
        for tap, module in taps.items():
            given = INPUT_OF.get(tap)
            # attention's result is taken where attention gives it
            self._output(module, at + tap, of=at + given if given and given != "attn_heads" else None)
        self._output(layer, at + "out")
        if self.wants_any(at + tap for tap in _ATTENTION):
            self._taken.update(dict.fromkeys(_ATTENTION))
            self._watch(layer.self_attn, before=functools.partial(self._enter, at), after=self._leave)
            self._watch(layer.self_attn.rope, after=lambda args, kwargs, out: self._rope(out))

    def _watch(
        self, module: nn.Module, after: Callable[[tuple, dict, Any], Any], before: Optional[Callable[[], Any]] = None
    ) -> None:
        base, session = type(module), self.session

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if before is not None:
                session.guard(before)
            out = base.__call__(self, *args, **kwargs)
            session.guard(lambda: after(args, kwargs, out))
            return out

        # MLX modules are dictionaries with attributes of their own: go past them
        watched = type(base.__name__, (base,), {"__call__": call, "__module__": base.__module__})
        object.__setattr__(module, "__class__", watched)
        self._undo.append(lambda: object.__setattr__(module, "__class__", base))

    def _output(self, module: nn.Module, tap: str, of: Optional[str] = None) -> None:
        """`tap` is what the module returns; `of`, where given, what it gets."""
        returned, given = self.wants(tap), of is not None and self.wants(of)
        self._taken.update({split(one)[1]: None for one, wanted in ((tap, returned), (of, given)) if wanted})

        def after(args: tuple, kwargs: dict, out: mx.array) -> None:
            if self._wanted:
                if returned:
                    self._now[tap] = out[0]
                if given:
                    self._now[of] = args[0][0]

        if returned or given:
            self._watch(module, after)

    # ---- one call of the model --------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._now, number = {}, self._number()
        if self.selection.is_past(number):
            self._flush()
            self.session.finish()
        self._wanted = self.selection.wants_step(number)

    def _enter(self, at: str) -> None:
        self._at, self._rotated = at, 0

    def _leave(self, _args: tuple, _kwargs: dict, _out: mx.array) -> None:
        self._at = ""

    def _rope(self, out: mx.array) -> None:
        # all models of mlx-lm rotate the queries first
        self._heads("k_rope" if self._rotated else "q_rope", out)
        self._rotated += 1

    def _attended(self, keys: Any, values: Any, out: mx.array) -> None:
        if isinstance(keys, mx.array):
            self._heads("k_cache", keys)
            self._heads("v_cache", values)
        else:  # a quantised cache hands over its parts
            self.session.note("k_cache and v_cache left out: the cache is quantised")
        self._heads("attn_heads", out)

    def _heads(self, tap: str, value: mx.array) -> None:
        """1,H,T,D to T,H,D."""
        if self._wanted and self.wants(self._at + tap):
            self._now[self._at + tap] = value[0].swapaxes(0, 1)

    def _step(self, args: tuple, kwargs: dict, out: mx.array) -> None:
        named = {**dict(zip(("inputs", "cache", "input_embeddings"), args)), **kwargs}
        inputs, cache = named.get("inputs"), named.get("cache")
        if named.get("input_embeddings") is not None:
            raise Refused("the model was called with input_embeddings; a trace needs token ids")
        if inputs.shape[0] != 1:
            raise Refused("a batch of several sequences: mlx-lm pads it, and no tensor says where; record one at a time")
        taps, self._now = self._now, {}
        if self._wanted and self.wants("logits"):
            taps["logits"] = out[0]
        try:
            mx.eval(list(taps.values()))
            ids = np.array(inputs[0]).astype(np.int64)
        except ValueError as error:
            raise Refused(f"the model runs inside mx.compile or another transformation, where nothing can be seen: {error}")
        end = len(ids) if cache is None else int(cache[0].offset)
        for tap in [tap for tap, value in taps.items() if tap.endswith("_cache") and value.shape[0] != end]:
            del taps[tap]
            self.session.note("k_cache and v_cache left out where the cache has dropped keys")
        sequence = self._caches.sequence(None if cache is None else cache[0], end - len(ids), end)
        arrays = {tap: _array(value) for tap, value in taps.items()}
        self._add(Step(ids.tolist(), list(range(end - len(ids), end)), [sequence] * len(ids), taps=arrays))

    # ---- what trace.json says ---------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        held = _DTYPES.get(self.model.model.norm.weight.dtype, "other")
        arithmetic = {"weights": held, "activations": held, "kv_cache": held}
        if _is_quantised(self.model) and mx.default_device() == mx.Device(mx.cpu, 0):
            arithmetic["accumulate"] = held  # the CPU's quantised product adds up in the activations' format
        return {
            "model": {"name": type(self.model).__module__.rsplit(".", 1)[-1], "family": self._family},
            "arithmetic": arithmetic,
            "environment": {"mlx": version("mlx"), "mlx_lm": version("mlx-lm"), "device": str(mx.default_device())},
        }

    def _announce(self) -> None:
        args = self.model.args
        number = lambda name, default=None: getattr(args, name, None) or default
        heads = args.num_attention_heads
        sizes = {
            "d": args.hidden_size, "F": args.intermediate_size, "V": args.vocab_size, "H": heads,
            "Hkv": number("num_key_value_heads", heads), "D": number("head_dim", args.hidden_size // heads),
        }  # fmt: skip
        element = 4 if self.model.model.norm.weight.dtype == mx.float32 else 2
        self.selection.announce(
            self._taken, sizes, len(self.model.model.layers), element=element, prompt=self.prompt, new=self.new
        )


class _Caches:
    """Which sequence each key/value cache holds, and how many of its tokens were recorded."""

    def __init__(self) -> None:
        self._held: list[tuple[Any, int, int]] = []  # cache, sequence, tokens: kept, so that no other takes its address
        self._sequences = 0

    def sequence(self, cache: Any, start: int, end: int) -> int:
        """The number of the sequence whose tokens `start` to `end` were just computed."""
        index = next((n for n, held in enumerate(self._held) if held[0] is cache and cache is not None), None)
        if start == 0:
            number, self._sequences = self._sequences, self._sequences + 1
        elif index is None or start > self._held[index][2]:
            seen = 0 if index is None else self._held[index][2]
            raise Refused(
                f"the key/value cache holds {start} tokens, of which {seen} were recorded; record from the prompt's first token "
                "on, with an empty cache"
            )
        else:
            number = self._held[index][1]
        if index is not None:
            del self._held[index]
        if cache is not None:
            self._held.append((cache, number, end))
        return number


def _is_quantised(model: nn.Module) -> bool:
    return any(isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)) for module in model.modules())


def _array(value: mx.array) -> Array:
    if value.dtype != mx.bfloat16:
        return np.array(value)
    bits = np.ascontiguousarray(np.array(value.view(mx.uint16)))
    return Raw(bits, "BF16", bits.shape)


# ---- python -m firstdiff.mlx_lm ------------------------------------------------------------------------------------


def _run(options: Any) -> "_cli.Run":
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    name, tokenizer = _cli.existing(options.model), None
    if options.tokens and Path(name).is_dir():
        model, _ = load_model(Path(name))
    else:
        model, tokenizer = load(name)
    if options.dtype:
        model.set_dtype(getattr(mx, options.dtype))
    tokens = options.tokens or tokenizer.encode(options.prompt)
    if bad := [token for token in tokens if token >= model.args.vocab_size]:
        raise ValueError(f"token id {bad[0]} is none of this model's {model.args.vocab_size}")
    stops = set(getattr(tokenizer, "eos_token_ids", None) or ())
    recorder = Recorder(model, options.output, **_cli.selection(options))
    recorder.prompt, recorder.new = len(tokens), options.new
    made: list[int] = []
    with recorder:
        if options.prompt is not None:
            recorder.session.guard(lambda: recorder.session.writer.update(prompt=options.prompt))
        cache = make_prompt_cache(model)
        logits = model(mx.array([tokens]), cache=cache)
        while len(made) < options.new:
            made.append(int(mx.argmax(logits[0, -1])))
            recorder.sampled(made[-1])
            if len(made) == options.new or made[-1] in stops:
                break
            logits = model(mx.array([made[-1:]]), cache=cache)
    return _cli.Run(recorder, made, tokenizer.decode(made) if tokenizer else None)


def _main() -> None:
    about = "Runs a model with mlx-lm and records it."
    model = "a folder with config.json and safetensors, or a name on the hub"
    _cli.main(_run, _cli.parser("mlx_lm", about, model, dtypes=True))


if __name__ == "__main__":
    _main()
