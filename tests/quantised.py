"""Quantises tiny checkpoints: the same folder in a format whose scales are tensors of their own, and its dequantised twin."""

import json
import re

import torch
from safetensors.torch import load_file, save_file

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def power_above(scale):
    """The exponent byte of the power of two at or above each scale."""
    return (torch.ceil(torch.log2(scale.clamp(min=1e-30))) + 127).clamp(0, 254).to(torch.uint8)


def codes_of(values):
    """The nearest 4-bit codes."""
    return (values[..., None] - E2M1).abs().argmin(-1).to(torch.uint8)


def packed(codes):
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def fp8_blocks(w, block):
    """FP8 with a scale for each block, the last ones cut; and the values."""
    (n, k), (bn, bk) = w.shape, block
    down, along = -(-n // bn), -(-k // bk)
    padded = torch.zeros(down * bn, along * bk)
    padded[:n, :k] = w
    scale = padded.reshape(down, bn, along, bk).abs().amax((1, 3)).clamp(min=1e-12) / 448
    spread = scale.repeat_interleave(bn, 0).repeat_interleave(bk, 1)[:n, :k]
    codes = (w / spread).to(torch.float8_e4m3fn)
    return codes, scale, codes.float() * spread


def mxfp4(w):
    """Packed codes, exponent bytes, values; the last axis in blocks of 32."""
    blocks = w.reshape(*w.shape[:-1], -1, 32)
    exponents = power_above(blocks.abs().amax(-1) / 6)
    powers = (2.0 ** (exponents.double() - 127)).float()[..., None]
    codes = codes_of(blocks / powers)
    return packed(codes.reshape(w.shape)), exponents, (E2M1[codes.long()] * powers).reshape(w.shape)


def nvfp4(w, divides):
    """Packed codes, scales, the factor on top as one package or the other stores it, values."""
    blocks = w.reshape(*w.shape[:-1], -1, 16)
    amax = w.abs().max()
    factor = (448 * 6 / amax if divides else amax / (448 * 6)).reshape(1).float()
    wanted = blocks.abs().amax(-1) / 6
    scale = (wanted * factor if divides else wanted / factor).clamp(min=2**-9).to(torch.float8_e4m3fn)
    whole = (scale.float() / factor if divides else scale.float() * factor)[..., None]
    codes = codes_of(blocks / whole)
    return packed(codes.reshape(w.shape)), scale, factor, (E2M1[codes.long()] * whole).reshape(w.shape)


def is_projection(name):
    return name.endswith("_proj.weight")


def write(folder, config, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def quantise(source, out, how, settings, chosen=is_projection):
    """Writes `out/quantised` and `out/twin`. `how` maps a weight's name and values to stored tensors and values."""
    config = json.loads((source / "config.json").read_text())
    stored, values = {}, {}
    for name, w in load_file(source / "model.safetensors").items():
        if not chosen(name):
            stored[name] = values[name] = w
            continue
        parts, values[name] = how(name, w)
        stored |= parts
    twin = write(out / "twin", config, values)
    return write(out / "quantised", {**config, "quantization_config": settings}, stored), twin


def as_fp8(block=(32, 32), suffix="weight_scale_inv"):
    def how(name, w):
        codes, scale, values = fp8_blocks(w, block)
        return {name: codes, name.replace("weight", suffix): scale}, values

    return how


def as_compressed_nvfp4(name, w):
    codes, scale, factor, values = nvfp4(w, divides=True)
    parts = {"weight_packed": codes, "weight_scale": scale, "weight_global_scale": factor}
    return {name.replace("weight", part): t for part, t in parts.items()}, values


def as_modelopt_nvfp4(name, w):
    codes, scale, factor, values = nvfp4(w, divides=False)
    return {name: codes, f"{name}_scale": scale, f"{name}_scale_2": factor.reshape(())}, values


def as_deepseek_fp4(name, w):
    codes, exponents, values = mxfp4(w)
    return {name: codes.view(torch.int8), name.replace("weight", "scale"): exponents.view(torch.float8_e8m0fnu)}, values


V4_FP8 = re.compile(r"attn\.(wq_a|wq_b|wkv|wo_a|wo_b)\.weight|indexer\.wq_b\.weight|shared_experts\.w\d\.weight")
V4_FP4 = re.compile(r"ffn\.experts\.\d+\.w\d\.weight")


def as_released_v4(name, w, block=(32, 32)):
    """DeepSeek-V4's release: experts in FP4, other matrices in FP8, every scale a power of two."""
    if V4_FP4.search(name):
        return as_deepseek_fp4(name, w)
    (n, k), (bn, bk) = w.shape, block
    spread = lambda scale: scale.repeat_interleave(bn, 0).repeat_interleave(bk, 1)[:n, :k]
    exponents = power_above(fp8_blocks(w, block)[1])
    powers = spread((2.0 ** (exponents.double() - 127)).float())
    codes = (w / powers).to(torch.float8_e4m3fn)
    scale = exponents.view(torch.float8_e8m0fnu)
    return {name: codes, name.replace("weight", "scale"): scale}, codes.float() * powers


def as_gpt_oss(name, w):
    codes, exponents, values = mxfp4(w)
    return {f"{name}_blocks": codes.reshape(*w.shape[:-1], -1, 16), f"{name}_scales": exponents}, values


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
COMPRESSED_NVFP4 = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}}},
}
MODELOPT_NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
