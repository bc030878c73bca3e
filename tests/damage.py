"""Ways to spoil a file: safetensors and GGUF headers written freely, truncation, flipped bytes."""

import json
import random
import shutil
import struct
from pathlib import Path

HUGE = 1 << 60
GIB = 1 << 30


def copy(folder, to):
    shutil.copytree(folder, to)
    return Path(to)


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def flip(path, places, seed=0):
    """One random bit in each of these bytes."""
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def overwrite(path, place, new):
    data = bytearray(path.read_bytes())
    data[place : place + len(new)] = new
    path.write_bytes(data)


# ---- safetensors: u64 header length, JSON header, data --------------------------------------------------------------


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_safetensors(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_safetensors(path, edit):
    """`edit(header)` changes the header's dictionary in place."""
    header, data = read_safetensors(path)
    edit(header)
    write_safetensors(path, header, data)


def edit_json(path, **changes):
    """Changes keys; a value of `...` removes the key."""
    value = json.loads(path.read_text())
    for key, new in changes.items():
        value.pop(key, None) if new is ... else value.update({key: new})
    path.write_text(json.dumps(value))


# ---- GGUF -----------------------------------------------------------------------------------------------------------

GGUF_KINDS = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "u64": (10, "<Q")}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key, kind, value):
    if kind == "string":
        return text(key) + struct.pack("<I", 8) + text(value)
    number, layout = GGUF_KINDS[kind]
    return text(key) + struct.pack("<I", number) + struct.pack(layout, value)


def info(name, shape, kind=0, offset=0, dimensions=None):
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack("<I", count) + b"".join(struct.pack("<Q", n) for n in shape) + struct.pack("<IQ", kind, offset)


SETTINGS = [
    pair("general.architecture", "string", "llama"),
    *(
        pair(f"llama.{key}", "u32", value)
        for key, value in {
            "block_count": 1,
            "context_length": 64,
            "embedding_length": 8,
            "feed_forward_length": 8,
            "attention.head_count": 2,
            "attention.head_count_kv": 2,
            "vocab_size": 16,
        }.items()
    ),
    pair("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
]
LAYER = {"attn_norm": [8], "attn_q": [8, 8], "attn_k": [8, 8], "attn_v": [8, 8], "attn_output": [8, 8], "ffn_norm": [8]}
LAYER |= {"ffn_gate": [8, 8], "ffn_up": [8, 8], "ffn_down": [8, 8]}
SHAPES = {"token_embd.weight": [8, 16], "output_norm.weight": [8], "output.weight": [8, 16]}
SHAPES |= {f"blk.0.{name}.weight": shape for name, shape in LAYER.items()}


def tensors():
    """name -> (shape, offset) of a whole tiny llama, float32, each start a multiple of 32."""
    offset, out = 0, {}
    for name, shape in SHAPES.items():
        out[name] = [shape, offset]
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        offset += -(-size // 32) * 32
    return out, offset


def gguf(path, settings=None, infos=None, counts=(None, None), version=3, magic=b"GGUF", data=None, alignment=32):
    """A tiny llama as GGUF, any part of which may be given wrongly."""
    whole, size = tensors()
    settings = SETTINGS if settings is None else settings
    infos = [info(name, shape, 0, offset) for name, (shape, offset) in whole.items()] if infos is None else infos
    n_tensors = len(infos) if counts[0] is None else counts[0]
    n_pairs = len(settings) if counts[1] is None else counts[1]
    head = magic + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join(settings) + b"".join(infos)
    head += b"\0" * (-len(head) % alignment)
    rng = random.Random(1)
    body = struct.pack(f"<{size // 4}f", *(rng.gauss(0, 0.3) for _ in range(size // 4))) if data is None else data
    path.write_bytes(head + body)
    return path


def infos_with(**changes):
    """The right tensor list but for one tensor: `name=dict(shape=…, kind=…, offset=…)`, dots as `__`."""
    out = []
    for name, (shape, offset) in tensors()[0].items():
        other = changes.get(name.replace(".", "__"), {})
        out.append(info(name, **{"shape": shape, "offset": offset, **other}))
    return out
