"""Which values of an ONNX graph are taps, and how they are made its outputs.

torch's exporter (`torch.onnx.export(..., dynamo=True)`) notes in each node's metadata which module it came from. So no
name is guessed: the last node of a module writes what the module returns, the first one reads what it gets. Attention is
a function, not a module: its values are found by what they are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence, Union

import onnx

from ._selection import Numbers, Selection
from ._taps import INPUT_OF, module_taps, tap_of

TAPS_KEY = "firstdiff.taps"  # where a marked file says which output is which tap

_CACHE = re.compile(r"(past|present)(?:_key_values)?\.(\d+)\.(key|value)")


def cache_entry(name: str) -> Optional[tuple[str, int, str]]:
    """(`past` or `present`, layer, `key` or `value`) for the cache's inputs and outputs, by their usual names."""
    found = _CACHE.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found else None


def find_taps(graph: "onnx.GraphProto") -> dict[str, str]:
    """tap -> name of the value in the graph."""
    constants = {one.name for one in graph.initializer}
    modules: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        modules.setdefault(_module(node), []).append(node)
    layers: dict[int, dict[str, list[onnx.NodeProto]]] = {}
    found = {"logits": one.name for one in graph.output if one.name == "logits"}
    for path, nodes in modules.items():
        layer = re.fullmatch(r"layers\.(\d+)\.?(.*)", path)
        if layer:
            layers.setdefault(int(layer[1]), {})[layer[2]] = nodes
        elif path != "lm_head" and (tap := tap_of(path)):
            found[tap] = nodes[-1].output[0]
    present = {entry[1:]: one.name for one in graph.output if (entry := cache_entry(one.name)) and entry[0] == "present"}
    for index, inside in layers.items():
        at = f"layers.{index}."
        for tap, path in module_taps(path for path in inside if path).items():
            found[at + tap] = inside[path][-1].output[0]
            if tap in INPUT_OF:
                found[at + INPUT_OF[tap]] = next(name for name in inside[path][0].input if name not in constants)
        if "" in inside:
            found[at + "out"] = inside[""][-1].output[0]
        keys, values = (present.get((index, part)) for part in ("key", "value"))
        found.update((at + tap, value) for tap, value in _attention(inside.get("self_attn", []), keys, values))
    return found


def _module(node: "onnx.NodeProto") -> str:
    """The path of the module that a node came from: `layers.0.self_attn.q_proj`."""
    for entry in node.metadata_props:
        if entry.key == "namespace":
            names = [part.split(":")[0].strip() for part in entry.value.split("/")[:-1]]
            return re.sub(r"^(?:model\.)+", "", next((name for name in reversed(names) if name), ""))
    return ""


def _attention(
    nodes: Sequence["onnx.NodeProto"], keys: Optional[str], values: Optional[str]
) -> Iterator[tuple[str, str]]:
    writer = {output: node for node in nodes for output in node.output}
    # queries are rotated first, and a rotation ends in a sum
    rotated = next((node.output[0] for node in nodes if node.op_type == "Add"), None)
    if rotated is not None:
        yield "q_rope", rotated
    if keys is not None and values is not None:
        yield "k_cache", keys
        yield "v_cache", values
        # the cache's keys are the old ones and the rotated new ones
        if keys in writer and writer[keys].op_type == "Concat":
            yield "k_rope", writer[keys].input[1]
    softmax = next((node for node in nodes if node.op_type == "Softmax"), None)
    if softmax is None:
        return
    yield "attn_probs", softmax.output[0]
    masked = writer.get(softmax.input[0])
    if masked is not None and masked.op_type == "Cast":
        masked = writer.get(masked.input[0])
    if masked is not None and masked.op_type == "Add":
        yield "attn_scores", masked.input[0]


def mark(
    source: Union[str, Path],
    target: Union[str, Path],
    *,
    layers: Numbers = None,
    taps: Union[str, Iterable[str], None] = None,
) -> dict[str, str]:
    """Writes the graph with the taps among its outputs, and returns which output is which: {tap: output}.

    `layers` and `taps` choose; None is all. An engine does not fuse across an output: mark `"out"` alone to leave everything
    inside a layer as it is. Weights that lie in a file of their own stay there, where `target` is in the same folder.
    """
    source, target = Path(source), Path(target)
    outside = source.parent.resolve() == target.parent.resolve()
    try:
        model = onnx.load(str(source), load_external_data=not outside)
    except Exception as error:  # protobuf's own kinds of errors
        raise ValueError(f"{source} cannot be read as ONNX: {error}") from None
    selection = Selection(layers, taps)
    found = {tap: value for tap, value in find_taps(model.graph).items() if selection.wants(tap)}
    if not any(tap != "logits" and not tap.endswith("_cache") for tap in found) and (taps is None):
        raise ValueError(
            f"{source} does not say which modules its nodes came from; export it with torch.onnx.export(..., dynamo=True), "
            "which notes that"
        )
    known = {value.name: value for value in model.graph.value_info}
    have = {output.name for output in model.graph.output}
    for name in dict.fromkeys(found.values()):
        if name not in have:
            model.graph.output.append(known.get(name) or onnx.ValueInfoProto(name=name))
    onnx.helper.set_model_props(model, {**{one.key: one.value for one in model.metadata_props}, TAPS_KEY: json.dumps(found)})
    large = not outside and model.ByteSize() > 1 << 30  # a protobuf holds less than 2 GB
    how: dict[str, Any] = {"save_as_external_data": True, "location": target.name + ".data"} if large else {}
    onnx.save(model, str(target), **how)
    return found
