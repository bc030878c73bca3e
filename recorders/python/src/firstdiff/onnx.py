"""Records ONNX graphs run by ONNX Runtime or OpenVINO: Llama, Qwen2, Qwen3 and what else torch's exporter writes alike.

    import firstdiff.onnx
    import onnxruntime

    firstdiff.onnx.mark("model.onnx", "marked.onnx")            # the taps become outputs of the graph
    session = onnxruntime.InferenceSession("marked.onnx")
    with firstdiff.onnx.record(session, "my.trace"):
        session.run(["logits"], inputs)                         # returns what it always does

    python -m firstdiff.onnx MODEL --tokens 1,2,3 -o my.trace [--engine openvino]

OpenVINO: `where = mark(...)`, then `record(compiled_model, "my.trace", where=where)` and `compiled_model(inputs)`.

A graph shows only what is among its outputs, and an engine does not fuse across them: with all taps marked it computes
other kernels than without. `mark(..., taps="out,logits")` shows the layers' outputs and leaves the fusions inside a layer.
The graph must note which modules its nodes came from, as torch.onnx.export(..., dynamo=True) does. Its inputs are
`input_ids`, and where it has them `position_ids`, and a cache as `past.N.key` or `past_key_values.N.key`; one sequence a call.
"""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Optional, Union

import numpy as np

from . import _cli

with _cli.needs("onnx", __name__ == "__main__"):
    from ._onnx_graph import TAPS_KEY, cache_entry, find_taps, mark
from ._recorder import StepRecorder
from ._selection import Numbers
from ._session import RecorderWarning, Refused, Step
from ._taps import split, taps as known_taps

__all__ = ["Recorder", "RecorderWarning", "find_taps", "mark", "record"]

# 1,H,T,D in the graph, T,H,D in a trace
_HEADS_FIRST = ("q_rope", "k_rope", "k_cache", "v_cache")


def record(
    engine: Any,
    path: Any,
    *,
    where: Optional[Mapping[str, str]] = None,
    family: Optional[str] = None,
    layers: Numbers = None,
    taps: Union[str, Iterable[str], None] = None,
    steps: Numbers = None,
    max_bytes: Union[str, int, None] = None,
    overwrite: bool = False,
) -> "Recorder":
    """Writes a trace of every call of `engine`, an InferenceSession or a CompiledModel, inside the `with` block.

    `where` is what `mark` returned; ONNX Runtime finds it in the marked file. `family` is the model's `model_type`. Of what is
    marked, `layers`, `taps` and `steps` choose (`"0-3,7"`, `"out,logits"`); the trace grows no larger than `max_bytes`.
    """
    return Recorder(
        engine, path, where=where, family=family, layers=layers, taps=taps, steps=steps, max_bytes=max_bytes,
        overwrite=overwrite,
    )  # fmt: skip


class Recorder(StepRecorder):
    """Watches one session or compiled model for as long as a `with` block lasts."""

    producer = "firstdiff.onnx"
    nothing = "the engine ran nothing inside the block"

    def __init__(
        self,
        engine: Any,
        path: Any,
        *,
        where: Optional[Mapping[str, str]] = None,
        family: Optional[str] = None,
        **selection: Any,
    ) -> None:
        super().__init__(path, **selection)
        self.engine = _adapter(engine)
        where = where or self.engine.where()
        if not where:
            raise TypeError("nothing says which outputs are taps: make the file with firstdiff.onnx.mark, and pass what it returns as where=")
        lacking = sorted(set(where.values()) - self.engine.outputs.keys())
        if lacking:
            raise TypeError(f"this graph has no output {lacking[0]!r}: it is not the one that firstdiff.onnx.mark made")
        self._where = {tap: name for tap, name in where.items() if self.wants(tap)}
        self._family = family
        self._ends: dict[tuple[int, bytes], int] = {}  # how long a cache is and its last keys -> whose it is
        self._sequences = 0

    def _describe(self) -> dict[str, Any]:
        model = {"model": {"family": self._family}} if self._family else {}
        return {**model, "environment": self.engine.about()}

    def _announce(self) -> None:
        sizes: dict[str, int] = {}
        for tap, name in self._where.items():
            shape = list(self.engine.outputs[name][0])[1:]
            own = split(tap)[1]
            if own in _HEADS_FIRST and len(shape) == 3:
                shape = [shape[1], shape[0], shape[2]]
            axes = known_taps()[own].axes.split(",")
            sizes.update((a, n) for a, n in zip(axes, shape) if len(axes) == len(shape) and a.isalpha() and isinstance(n, int))
        layers = 1 + max((layer for layer, _ in map(split, self._where) if layer is not None), default=-1)
        element = max((self.engine.outputs[name][1].itemsize for name in self._where.values()), default=4)
        names = dict.fromkeys(split(tap)[1] for tap in self._where)
        self.selection.announce(names, sizes, layers, element=element, prompt=self.prompt, new=self.new)

    def _attach(self) -> None:
        self._undo.append(self.engine.watch(self._call))

    def _call(self, run: Callable[[list[str]], Mapping[str, Any]], inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """One call: `run` computes these outputs beside those that the caller asked for."""
        if not self.session.alive:
            return run([])
        number = self._number()
        if self.selection.is_past(number):
            self.session.guard(self._flush)
            self.session.finish()
            return run([])
        where = self._where if self.selection.wants_step(number) else {}
        outputs = run(list(dict.fromkeys(where.values())))
        self.session.guard(lambda: self._keep(where, inputs, outputs))
        return outputs

    def _keep(self, where: Mapping[str, str], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        ids = np.asarray(inputs["input_ids"]) if "input_ids" in inputs else None
        if ids is None:
            raise Refused("the graph was not given input_ids; a trace needs token ids")
        if ids.ndim != 2 or ids.shape[0] != 1:
            raise Refused("a batch of several sequences: where it is padded, no output says; record one sequence at a time")
        past = {entry[1:]: np.asarray(value) for name, value in inputs.items() if (entry := cache_entry(name))}
        keys = past.get((min((layer for layer, _ in past), default=0), "key"))
        start = 0 if keys is None else keys.shape[2]
        positions = np.asarray(inputs["position_ids"])[0] if "position_ids" in inputs else start + np.arange(ids.shape[1])
        sequence = self._sequence(start, keys)
        taps = {tap: _rows(tap, np.asarray(outputs[name])) for tap, name in where.items()}
        self._add(Step(ids[0].tolist(), positions.tolist(), [sequence] * ids.shape[1], taps=taps))
        for name, value in outputs.items():
            entry = cache_entry(name)
            if entry is not None and entry[2] == "key" and (keys is None or entry[1] == min(layer for layer, _ in past)):
                value = np.asarray(value)
                self._ends[value.shape[2], np.ascontiguousarray(value[:, :, -1]).tobytes()] = sequence
                break

    def _sequence(self, start: int, keys: Optional[np.ndarray]) -> int:
        """Whose tokens these are, by the cache that went in."""
        if not start:
            self._sequences += 1
            return self._sequences - 1
        found = self._ends.get((start, np.ascontiguousarray(keys[:, :, -1]).tobytes()))
        if found is None:
            raise Refused(
                f"the key/value cache that went in holds {start} tokens that this recording did not see; record from the prompt's "
                "first token on, with an empty cache"
            )
        return found


def _rows(tap: str, value: np.ndarray) -> np.ndarray:
    """Without the batch's axis, and in a trace's order."""
    value = value[0]
    # a copy: an engine may hand out its own memory
    return np.array(value.swapaxes(0, 1) if tap.endswith(_HEADS_FIRST) else value, order="C", copy=True)


# ---- the engines ---------------------------------------------------------------------------------------------------

_Watcher = Callable[[Callable[[list[str]], Mapping[str, Any]], Mapping[str, Any]], Mapping[str, Any]]


class _OnnxRuntime:
    """An InferenceSession, through its `run`."""

    def __init__(self, session: Any) -> None:
        self.session = session
        kinds = {"float16": np.float16, "float": np.float32, "double": np.float64, "int64": np.int64, "int32": np.int32}
        read = lambda entries: {
            one.name: (one.shape or [], np.dtype(kinds.get(one.type.removeprefix("tensor(").removesuffix(")"), np.float32)))
            for one in entries
        }
        self.inputs, self.outputs = read(session.get_inputs()), read(session.get_outputs())

    def where(self) -> dict[str, str]:
        return json.loads(self.session.get_modelmeta().custom_metadata_map.get(TAPS_KEY, "{}"))

    def about(self) -> dict[str, Any]:
        options = self.session.get_session_options()
        return {
            "engine": "onnxruntime", "onnxruntime": version("onnxruntime"), "providers": self.session.get_providers(),
            "optimisations": str(options.graph_optimization_level), "threads": options.intra_op_num_threads,
        }  # fmt: skip

    def watch(self, watcher: _Watcher) -> Callable[[], None]:
        session = self.session
        run, before = session.run, vars(session).get("run")

        def watched(output_names: Any, input_feed: Any, *args: Any, **kwargs: Any) -> list[Any]:
            asked = [output.name for output in session.get_outputs()] if output_names is None else list(output_names)

            def more(names: list[str]) -> Mapping[str, Any]:
                every = list(dict.fromkeys([*asked, *names]))
                return dict(zip(every, run(every, input_feed, *args, **kwargs)))

            outputs = watcher(more, input_feed)
            return [outputs[name] for name in asked]

        def undo() -> None:
            if before is None:
                del session.run
            else:
                session.run = before

        session.run = watched
        return undo

    def call(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        names = ["logits", *(name for name in self.outputs if cache_entry(name))]
        return dict(zip(names, self.session.run(names, dict(inputs))))


class _OpenVino:
    """A CompiledModel that is called: Python looks `__call__` up on the type, so it gets a class of its own for a while."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        shape = lambda port: [one.get_length() if one.is_static else None for one in port.get_partial_shape()]
        read = lambda ports: {
            name: (shape(port), np.dtype(port.get_element_type().to_dtype())) for port in ports for name in port.names
        }
        self.inputs, self.outputs = read(compiled.inputs), read(compiled.outputs)

    def where(self) -> dict[str, str]:
        return {}

    def about(self) -> dict[str, Any]:
        taken = str(self.compiled.get_property("INFERENCE_PRECISION_HINT"))
        return {"engine": "openvino", "openvino": version("openvino"), "precision": taken}

    def watch(self, watcher: _Watcher) -> Callable[[], None]:
        compiled, base = self.compiled, type(self.compiled)

        def call(self: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []

            def more(_names: list[str]) -> Mapping[str, Any]:
                results.append(base.__call__(self, inputs, *args, **kwargs))
                return {name: results[-1][port] for port in self.outputs for name in port.names}

            named = inputs if isinstance(inputs, Mapping) else {}
            watcher(more, {name if isinstance(name, str) else _port_name(name): value for name, value in named.items()})
            return results[-1]

        compiled.__class__ = type(base.__name__, (base,), {"__call__": call, "__module__": base.__module__})

        def undo() -> None:
            compiled.__class__ = base

        return undo

    def call(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        results = self.compiled(dict(inputs))
        return {name: results[port] for port in self.compiled.outputs for name in port.names}


def _port_name(port: Any) -> str:
    return port.get_any_name() if hasattr(port, "get_any_name") else str(port)


def _adapter(engine: Any) -> Any:
    packages = {kind.__module__.split(".")[0] for kind in type(engine).__mro__}
    if "onnxruntime" in packages and hasattr(engine, "get_modelmeta"):
        return _OnnxRuntime(engine)
    if "openvino" in packages and hasattr(engine, "get_runtime_model"):
        return _OpenVino(engine)
    raise TypeError(
        f"firstdiff.onnx records an onnxruntime.InferenceSession or an openvino.CompiledModel; this is {type(engine).__name__}"
    )


# ---- generating ----------------------------------------------------------------------------------------------------


def generate(engine: Any, prompt: list[int], new: int, sampled: Callable[[int], Any] = lambda token: None) -> list[int]:
    """Chooses `new` tokens greedily with a session or compiled model; `sampled` is told each of them."""
    engine = engine if hasattr(engine, "call") else _adapter(engine)
    past = {}
    for name, (shape, dtype) in engine.inputs.items():
        if cache_entry(name):
            past[name] = np.zeros((1, shape[1], 0, shape[3]), dtype)
    presents = {entry[1:]: name for name in engine.outputs if (entry := cache_entry(name)) and entry[0] == "present"}
    ids, start, made = list(prompt), 0, []
    while True:
        inputs: dict[str, Any] = {"input_ids": np.array([ids], np.int64), **past}
        if "position_ids" in engine.inputs:
            inputs["position_ids"] = np.arange(start, start + len(ids))[None]
        if "attention_mask" in engine.inputs:
            inputs["attention_mask"] = np.ones((1, start + len(ids)), np.int64)
        outputs = engine.call(inputs)
        if new == 0:
            return made
        made.append(int(np.asarray(outputs["logits"])[0, -1].argmax()))
        sampled(made[-1])
        if len(made) == new:
            return made
        if past:
            past = {name: np.array(outputs[presents[cache_entry(name)[1:]]]) for name in past}
            ids, start = made[-1:], start + len(ids)
        else:
            ids = [*ids, made[-1]]


# ---- python -m firstdiff.onnx --------------------------------------------------------------------------------------


def _open(engine: str, file: Path, options: Any) -> Any:
    with _cli.needs("openvino" if engine == "openvino" else "onnx", __name__ == "__main__"):
        if engine == "openvino":
            import openvino

            core = openvino.Core()
            settings = {"INFERENCE_PRECISION_HINT": options.precision} if options.precision else {}
            return core.compile_model(core.read_model(str(file)), "CPU", settings)
        import onnxruntime
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _exported(folder: Path, scratch: Path, options: Any) -> Path:
    """The graph of a folder with config.json and safetensors."""
    with _cli.needs("onnx", __name__ == "__main__"):
        from transformers import AutoModelForCausalLM

        from ._onnx_export import export
    how = {"attn_implementation": options.attention} if options.attention else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=options.dtype or "auto", **how).eval()
    export(model, scratch / "model.onnx")
    return scratch / "model.onnx"


def _run(options: Any) -> "_cli.Run":
    path = Path(options.model)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    folder = path if path.is_dir() else path.parent
    config = json.loads((folder / "config.json").read_bytes()) if (folder / "config.json").is_file() else {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as made:
        scratch = Path(made)
        graphs = [path] if path.is_file() else sorted(path.glob("*.onnx"))
        if len(graphs) > 1:
            raise ValueError(f"{path} holds {len(graphs)} graphs ({', '.join(one.name for one in graphs)}); name one")
        graph = graphs[0] if graphs else _exported(path, scratch, options)
        where = mark(graph, scratch / "marked.onnx", layers=options.layers, taps=options.taps)
        engine = _open(options.engine, scratch / "marked.onnx", options)
        tokenizer, tokens = None, options.tokens
        if tokens is None:
            with _cli.needs("onnx", __name__ == "__main__"):
                from transformers import AutoTokenizer
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokens = tokenizer(options.prompt)["input_ids"]
        size = config.get("vocab_size")
        if size and (bad := [token for token in tokens if token >= size]):
            raise ValueError(f"token id {bad[0]} is none of this model's {size}")
        recorder = Recorder(engine, options.output, where=where, family=config.get("model_type"), **_cli.selection(options))
        recorder.prompt, recorder.new = len(tokens), options.new
        with recorder:
            if options.prompt is not None:
                recorder.session.guard(lambda: recorder.session.writer.update(prompt=options.prompt))
            out = generate(engine, tokens, options.new, recorder.sampled)
    return _cli.Run(recorder, out, tokenizer.decode(out) if tokenizer else None)


def _main() -> None:
    options = _cli.parser(
        "onnx", "Runs an ONNX graph with ONNX Runtime or OpenVINO and records it.",
        "an .onnx file of torch's exporter, a folder with one, or a folder with config.json and safetensors, which is exported",
        dtypes=True,
    )  # fmt: skip
    options.add_argument("--engine", choices=("onnxruntime", "openvino"), default="onnxruntime")
    options.add_argument("--precision", choices=("f32", "f16", "bf16"), help="OpenVINO: the precision to compute in")
    options.add_argument("--attention", choices=("eager", "sdpa"), help="attention implementation to export")
    _cli.main(_run, options)


if __name__ == "__main__":
    _main()
