"""Writes GGUF files of Llama, Qwen2 and Qwen3: metadata and tensors, no tokenizer."""

import struct

import torch
from quantise import TYPES, encode
from shapes import head_dim

ALIGNMENT = 32
GLOBAL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# What every matrix is stored as. The mix gives better formats to what is most sensitive, as llama.cpp's Q4_K_M does.
FORMATS = ("q8_0", "q4_k_m", "q4_0", "q4_1", "q5_0", "q5_k", "q6_k")
# Formats without blocks, and files whose matrices have many formats, with float32 among them and without: the kernels keep
# shorter segments of rows where there is float32.
MIXES = {"mixed": ("BF16", "F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")}
MIXES["mixed_f32"] = ("F32", *MIXES["mixed"])
OTHER_FORMATS = ("f16", "f32", *MIXES)
# Formats of blocks of 256 need rows of that; these stand in for them elsewhere.
NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_0", "Q6_K": "Q8_0"}


def short(name):
    """The name of a tensor in the file."""
    stem, kind = name.rsplit(".", 1)
    if stem in GLOBAL:
        return f"{GLOBAL[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.{kind}"


def kind_of(name, shape, file_format, layers):
    """The format of a tensor in a file of this format."""
    if len(shape) == 1:
        return "F32"
    kind = file_format.upper()
    if file_format in MIXES:
        kind = MIXES[file_format][sum(name.encode()) % len(MIXES[file_format])]
    if file_format == "q4_k_m":
        kind = "Q4_K"
        if name in ("token_embd.weight", "output.weight"):
            kind = "Q6_K"
        elif "attn_v" in name or "ffn_down" in name:
            layer = int(name.split(".")[1])
            better = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
            kind = "Q6_K" if better else "Q4_K"
    return kind if shape[1] % TYPES[kind][1] == 0 else NARROW[kind]


def interleaved(weight, heads):
    """The order of rows that llama.cpp's converter gives queries and keys of the architecture `llama`."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def metadata(c, file_format):
    arch = c["model_type"]
    size = head_dim(c)
    return {
        "general.architecture": arch,
        "general.name": f"random {arch} {file_format}",
        "general.alignment": ALIGNMENT,
        f"{arch}.vocab_size": c["vocab_size"],
        f"{arch}.embedding_length": c["hidden_size"],
        f"{arch}.block_count": c["num_hidden_layers"],
        f"{arch}.feed_forward_length": c["intermediate_size"],
        f"{arch}.attention.head_count": c["num_attention_heads"],
        f"{arch}.attention.head_count_kv": c["num_key_value_heads"],
        f"{arch}.attention.key_length": size,
        f"{arch}.attention.value_length": size,
        f"{arch}.rope.dimension_count": size,
        f"{arch}.context_length": c["max_position_embeddings"],
        f"{arch}.attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(c["rope_theta"]),
    }


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def write(path, c, tensors, file_format, device="cpu"):
    """Writes `tensors` (transformers' names) as a file of this format; returns the bytes of its tensors."""
    infos, blobs, offset = [], [], 0
    for name, weight in tensors.items():
        name = short(name)
        weight = weight.to(device)
        if c["model_type"] == "llama" and ("attn_q." in name or "attn_k." in name):
            weight = interleaved(weight, c["num_attention_heads" if "attn_q." in name else "num_key_value_heads"])
        kind = kind_of(name, weight.shape, file_format, c["num_hidden_layers"])
        data = encode(weight.reshape(-1, weight.shape[-1]), kind).cpu().numpy().tobytes()
        dims = list(reversed(weight.shape))
        infos.append(
            _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPES[kind][0], offset)
        )
        blobs.append(data)
        offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
    pairs = metadata(c, file_format)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs))
    head += b"".join(_string(key) + _value(value) for key, value in pairs.items()) + b"".join(infos)
    with open(path, "wb") as out:
        out.write(head + bytes(-len(head) % ALIGNMENT))
        for data in blobs:
            out.write(data + bytes(-len(data) % ALIGNMENT))
    return sum(map(len, blobs))


def tensors_of(folder, device="cpu"):
    """The tensors of a checkpoint folder."""
    from safetensors.torch import load_file

    return {name: t for name, t in load_file(folder / "model.safetensors", device=str(torch.device(device))).items()}
