"""A checkpoint larger than memory, checked from a recorded trace: time for each layer, and peak memory.

The shape is that of a released model, with fewer layers and random weights in the release's layout. Files are sparse:
every tensor is random at its start and zero after it, so that 40 GB need not lie on the disk. What is dequantised and
multiplied is the same; what reading it from a disk would add is measured on one file that is whole.
"""

import argparse
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "I64": 8}
# Bytes at a tensor's start that are random; the rest of larger ones is a hole.
FILLED = 1 << 16
rng = np.random.default_rng(1)


def bf16(values):
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def content(name, dtype, count):
    """The first bytes of a tensor, of realistic size."""
    few = min(count, FILLED)
    if dtype == "F8_E4M3":
        codes = rng.integers(0, 254, few, dtype=np.uint8)
        return (codes + (codes >= 127)).astype(np.uint8).tobytes()
    if dtype == "I8":
        return rng.integers(0, 256, few, dtype=np.uint8).tobytes()
    if dtype == "F8_E8M0":
        return rng.integers(110, 115, count, dtype=np.uint8).tobytes()
    if dtype == "I64":
        # Six experts a token, no two alike.
        return ((rng.integers(0, 256, (count // 6, 1)) + 41 * np.arange(6)) % 256).astype("<i8").tobytes()
    values = rng.standard_normal(few).astype("<f4")
    if "norm" in name:
        values = 1 + 0.1 * values
    elif name.endswith("scale_inv"):
        values = np.full(few, 2e-4, "<f4")
    else:
        values *= 0.02
    return values.astype("<f4").tobytes() if dtype == "F32" else bf16(values)


def write_shard(path, tensors):
    """`tensors`: name, type, shape. Holes stay holes."""
    header, at = {}, 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape, dtype=np.int64)) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name, dtype, shape in tensors:
            file.seek(start + header[name]["data_offsets"][0])
            file.write(content(name, dtype, int(np.prod(shape, dtype=np.int64))))
        file.truncate(start + at)
    return at


def scaled(name, n, k, block=128, kind="F32", suffix="weight_scale_inv"):
    yield f"{name}.weight", "F8_E4M3", (n, k)
    yield f"{name}.{suffix}", kind, (-(-n // block), -(-k // block))


def qwen3_moe(layer):
    """A layer of Qwen3-235B-A22B-FP8."""
    p, d, inner = f"model.layers.{layer}", 4096, 1536
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{p}.{norm}.weight", "BF16", (d,)
    for norm in ("q_norm", "k_norm"):
        yield f"{p}.self_attn.{norm}.weight", "BF16", (128,)
    for module, n, k in (("q_proj", 8192, d), ("k_proj", 512, d), ("v_proj", 512, d), ("o_proj", d, 8192)):
        yield from scaled(f"{p}.self_attn.{module}", n, k)
    yield f"{p}.mlp.gate.weight", "BF16", (128, d)
    for e in range(128):
        for module, n, k in (("gate_proj", inner, d), ("up_proj", inner, d), ("down_proj", d, inner)):
            yield from scaled(f"{p}.mlp.experts.{e}.{module}", n, k)


QWEN3_MOE = {
    "model_type": "qwen3_moe", "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": False, "hidden_act": "silu",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}  # fmt: skip


def qwen3_moe_rest():
    yield "model.embed_tokens.weight", "BF16", (151936, 4096)
    yield "model.norm.weight", "BF16", (4096,)
    yield "lm_head.weight", "BF16", (151936, 4096)


RATIOS = [0, 0, 4, 128] + [4, 128] * 20


def deepseek_v4(layer):
    """A layer of DeepSeek-V4-Flash: FP8 with powers of two as scales, experts in FP4."""
    p, d, heads, head, lora, groups, rank, inner, n = f"layers.{layer}", 4096, 64, 512, 1024, 8, 1024, 2048, 4
    fp8 = lambda name, rows, columns: scaled(f"{p}.{name}", rows, columns, kind="F8_E8M0", suffix="scale")
    for norm in ("attn_norm", "ffn_norm"):
        yield f"{p}.{norm}.weight", "BF16", (d,)
    for side in ("attn", "ffn"):
        yield f"{p}.hc_{side}_fn", "F32", ((2 + n) * n, n * d)
        yield f"{p}.hc_{side}_base", "F32", ((2 + n) * n,)
        yield f"{p}.hc_{side}_scale", "F32", (3,)
    yield from fp8("attn.wq_a", lora, d)
    yield f"{p}.attn.q_norm.weight", "BF16", (lora,)
    yield from fp8("attn.wq_b", heads * head, lora)
    yield from fp8("attn.wkv", head, d)
    yield f"{p}.attn.kv_norm.weight", "BF16", (head,)
    yield f"{p}.attn.attn_sink", "F32", (heads,)
    yield from fp8("attn.wo_a", groups * rank, heads * head // groups)
    yield from fp8("attn.wo_b", d, groups * rank)
    ratio = RATIOS[layer]
    for prefix, size in (("attn.compressor", head), ("attn.indexer.compressor", 128))[: {0: 0, 128: 1, 4: 2}[ratio]]:
        width = 2 * size if ratio == 4 else size
        yield f"{p}.{prefix}.wkv.weight", "BF16", (width, d)
        yield f"{p}.{prefix}.wgate.weight", "BF16", (width, d)
        yield f"{p}.{prefix}.norm.weight", "BF16", (size,)
        yield f"{p}.{prefix}.ape", "F32", (ratio, width)
    if ratio == 4:
        yield from fp8("attn.indexer.wq_b", 64 * 128, lora)
        yield f"{p}.attn.indexer.weights_proj.weight", "BF16", (64, d)
    yield f"{p}.ffn.gate.weight", "BF16", (256, d)
    if layer < 3:
        yield f"{p}.ffn.gate.tid2eid", "I64", (129280, 6)
    else:
        yield f"{p}.ffn.gate.bias", "F32", (256,)
    for matrix, rows, columns in (("w1", inner, d), ("w3", inner, d), ("w2", d, inner)):
        yield from fp8(f"ffn.shared_experts.{matrix}", rows, columns)
        for e in range(256):
            yield f"{p}.ffn.experts.{e}.{matrix}.weight", "I8", (rows, columns // 2)
            yield f"{p}.ffn.experts.{e}.{matrix}.scale", "F8_E8M0", (rows, columns // 32)


DEEPSEEK_V4 = {
    "model_type": "deepseek_v4", "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512,
    "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "num_experts_per_tok": 6, "n_shared_experts": 1, "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus", "norm_topk_prob": True, "num_hash_layers": 3, "index_n_heads": 64, "index_head_dim": 128,
    "index_topk": 512, "sliding_window": 128, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6,
    "swiglu_limit": 10.0, "rope_theta": 10000, "compress_rope_theta": 160000, "vocab_size": 129280, "hidden_act": "silu",
    "rope_scaling": {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 65536},
    "max_position_embeddings": 1048576, "tie_word_embeddings": False, "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
}  # fmt: skip


def deepseek_v4_rest():
    yield "embed.weight", "BF16", (129280, 4096)
    yield "norm.weight", "BF16", (4096,)
    yield "head.weight", "BF16", (129280, 4096)
    yield "hc_head_fn", "F32", (4, 4 * 4096)
    yield "hc_head_base", "F32", (4,)
    yield "hc_head_scale", "F32", (1,)


# What a layer holds, the rest, the configuration, layers of the released models.
SHAPES = {
    "qwen3_moe": (qwen3_moe, qwen3_moe_rest, QWEN3_MOE, (94,)),
    "deepseek_v4": (deepseek_v4, deepseek_v4_rest, DEEPSEEK_V4, (43, 61)),
}


def make(family, layers, folder):
    """Writes the checkpoint; returns its size and that of one layer."""
    of_layer, rest, config, _ = SHAPES[family]
    config = {**config, "num_hidden_layers": layers}
    if family == "deepseek_v4":
        # The released list is longer than the layers: its tail belongs to the block that predicts further tokens.
        config["compress_ratios"] = RATIOS[:layers] + [0]
    index, sizes = {}, []
    for number in [*range(layers), None]:
        tensors = list(rest() if number is None else of_layer(number))
        shard = f"model-{'rest' if number is None else f'{number:05}'}.safetensors"
        sizes.append(write_shard(folder / shard, tensors))
        index |= dict.fromkeys((name for name, _, _ in tensors), shard)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(sizes), max(sizes[:-1])


def run(command):
    """Seconds, peak memory in GiB (mapped pages included), standard output and exit code of one command."""
    start = time.monotonic()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return time.monotonic() - start, usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime, out, code


def disk_speed(folder):
    """GB/s of a file that is whole, read for the first time."""
    path = folder / "whole"
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(rng.bytes(1 << 24))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start, size = time.monotonic(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 24):
            size += len(chunk)
    path.unlink()
    return size / (time.monotonic() - start) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firstdiff", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="made, and removed afterwards")
    parser.add_argument("--family", choices=SHAPES, default="deepseek_v4")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--slice", default="3")
    c = parser.parse_args()
    model, trace = c.folder / "model", c.folder / "trace"
    model.mkdir(parents=True)
    try:
        size, layer = make(c.family, c.layers, model)
        on_disk = sum(file.stat().st_blocks * 512 for file in model.iterdir())
        print(f"{c.family}, {c.layers} layers: {size / 1e9:.1f} GB, {on_disk / 1e9:.1f} GB of it on disk; a layer {layer / 1e9:.2f} GB")
        ids = ",".join(str(i) for i in rng.integers(0, 100000, c.tokens))
        whole = SHAPES[c.family][3]
        wall_times, cpu_times = {}, {}
        for name, command in {
            "trace": ["trace", model, trace, "--tokens", ids, "--steps", "1"],
            "check": ["check", trace, "--model", model, "--format", "json", "--jobs", c.jobs],
            f"check --layers {c.slice}": ["check", trace, "--model", model, "--format", "json", "--layers", c.slice],
        }.items():
            wall, peak, cpu, out, code = run([c.firstdiff, *command, "--memory", c.memory])
            wall_times[name], cpu_times[name] = wall, cpu
            said = json.loads(out) if out and code in (0, 1) else {}
            verdict = f", {said['verdict']}, {said['coverage']['taps']} values" if said else f", exit {code}"
            print(f"{name}: {wall:.0f} s ({cpu:.0f} s of processor), peak {peak:.2f} GiB{verdict}", flush=True)
            if code not in (0, 1):
                sys.exit(1)
        for what, times in (("of a clock", wall_times), ("of processors", cpu_times)):
            each = times["check"] / c.layers
            print(f"a layer, {what}: {each:.1f} s; " + ", ".join(f"{n} layers: {each * n / 60:.0f} min" for n in whole))
        speed = disk_speed(c.folder)
        print(f"the disk gives {speed:.2f} GB/s: reading all of a layer from it takes {layer / 1e9 / speed:.1f} s")
    finally:
        shutil.rmtree(c.folder)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
