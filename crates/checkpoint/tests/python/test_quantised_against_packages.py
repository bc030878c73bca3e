"""Quantised safetensors dequantise as the packages that write them do: bit for bit, or to the last bit of binary32.

Random bytes stand for weights: every code occurs, every kind of finite scale too. Each case is a folder of its own.
"""

import json
import subprocess

import numpy as np
import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

FP8_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


@pytest.fixture
def values(example, tmp_path):
    """Tensors and a quantization_config -> what the reader makes of one weight."""

    def read(tensors, quantisation, name="m.weight"):
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
        config = {"model_type": "llama", "quantization_config": quantisation}
        (tmp_path / "config.json").write_text(json.dumps(config))
        done = subprocess.run([example("tensors"), tmp_path, name], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout, "<u4")

    return read


def bits(tensor):
    return np.ascontiguousarray(tensor.detach().float().numpy(), "<f4").view(np.uint32).ravel()


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def bytes_of(shape, generator, dtype=torch.uint8, high=256):
    return torch.randint(0, high, shape, generator=generator).to(torch.uint8).view(dtype)


def fp8(shape, generator):
    """Every code but the two that are NaN."""
    codes = torch.randint(0, 254, shape, generator=generator)
    return (codes + (codes >= 127)).to(torch.uint8).view(torch.float8_e4m3fn)


def powers(shape, generator):
    """Powers of two from subnormal ones to large ones."""
    return torch.randint(0, 200, shape, generator=generator).to(torch.uint8).view(torch.float8_e8m0fnu)


@pytest.mark.parametrize("scale", ["f32", "bf16", "e8m0"])
@pytest.mark.parametrize("name", ["m.weight_scale_inv", "m.scale"])
def test_fp8_blocks_are_those_of_transformers(values, scale, name):
    dequantize = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
    g = seeded()
    weight = fp8((256, 384), g)
    scales = powers((2, 3), g) if scale == "e8m0" else torch.rand(2, 3, generator=g)
    scales = scales.bfloat16() if scale == "bf16" else scales
    ours = values({"m.weight": weight, name: scales}, FP8_BLOCKS)
    assert np.array_equal(ours, bits(dequantize._dequantize_one(weight, scales, torch.float32)))


def test_fp8_blocks_cut_by_the_matrix_are_those_of_the_padded_one(values):
    """576 rows in blocks of 128: transformers refuses to take that apart, so it is given whole blocks."""
    dequantize = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
    g = seeded()
    padded, scales = fp8((640, 256), g), torch.rand(5, 2, generator=g)
    ours = values({"m.weight": padded[:576, :200], "m.weight_scale_inv": scales}, FP8_BLOCKS)
    theirs = dequantize._dequantize_one(padded, scales, torch.float32)[:576, :200]
    assert np.array_equal(ours, bits(theirs))


def test_every_fp8_code_is_torchs(values):
    codes = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    codes[codes == 127] = 0
    codes[codes == 255] = 0
    weight = codes.view(torch.float8_e4m3fn)
    ours = values({"m.weight": weight, "m.weight_scale_inv": torch.ones(1, 1)}, FP8_BLOCKS)
    assert np.array_equal(ours, bits(weight))


@pytest.mark.parametrize("form", ["tensor", "channel", "block"])
def test_fp8_of_compressed_tensors(values, form):
    lifecycle = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    args = pytest.importorskip("compressed_tensors.quantization").QuantizationArgs
    g = seeded()
    weight = fp8((256, 384), g)
    shape, extra = {"tensor": ((1,), {}), "channel": ((256, 1), {}), "block": ((2, 3), {"block_structure": [128, 128]})}[form]
    scales = torch.rand(shape, generator=g)
    weights = {"num_bits": 8, "type": "float", "strategy": form, "symmetric": True, **extra}
    theirs = lifecycle.dequantize(weight, scales, args=args(**weights), dtype=torch.float32)
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": {"weights": weights}}}
    ours = values({"m.weight": weight, "m.weight_scale": scales}, settings)
    assert np.array_equal(ours, bits(theirs))


def test_fp4_experts_of_deepseek_are_those_of_transformers(values):
    dequantize = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
    g = seeded()
    weight, scales = bytes_of((48, 64), g, torch.int8), powers((48, 4), g)
    name = "layers.0.ffn.experts.7.w1"
    ours = values({f"{name}.weight": weight, f"{name}.scale": scales}, FP8_BLOCKS, f"{name}.weight")
    assert np.array_equal(ours, bits(dequantize._dequantize_one(weight, scales, torch.float32)))


def test_mxfp4_blocks_of_gpt_oss_are_those_of_transformers(values):
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    g = seeded()
    blocks, scales = bytes_of((3, 10, 4, 16), g), bytes_of((3, 10, 4), g, high=200)
    ours = values({"e.down_proj_blocks": blocks, "e.down_proj_scales": scales}, {"quant_method": "mxfp4"}, "e.down_proj")
    theirs = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    # transformers turns every expert's matrix; here rows stay outputs.
    assert np.array_equal(ours, bits(theirs.transpose(1, 2)))


def compressed_scheme(name):
    schemes = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    return pytest.importorskip("compressed_tensors.quantization").QuantizationScheme(
        targets=["Linear"], **getattr(schemes, name)
    )


def test_mxfp4_of_compressed_tensors(values):
    packer = pytest.importorskip("compressed_tensors.compressors.mxfp4.base").MXFP4PackedCompressor
    g = seeded()
    packed, scales = bytes_of((48, 64), g), bytes_of((48, 4), g, high=200)
    settings = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    stored = {"weight_packed": packed, "weight_scale": scales}
    ours = values({f"m.{k}": v for k, v in stored.items()}, settings)
    theirs = packer.decompress(dict(stored), compressed_scheme("MXFP4"))["weight"]
    # It gives bfloat16, in which these products are exact: but for what is below its smallest number.
    assert theirs.dtype == torch.bfloat16
    assert np.array_equal(ours, bits(theirs))


def nvfp4(generator):
    """4-bit codes and positive scales of 48 rows of 128."""
    return bytes_of((48, 64), generator), bytes_of((48, 8), generator, high=127).view(torch.float8_e4m3fn)


def test_nvfp4_of_compressed_tensors_divides_by_its_global_scale(values):
    packer = pytest.importorskip("compressed_tensors.compressors.nvfp4.base").NVFP4PackedCompressor
    lifecycle = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    g = seeded()
    packed, scales = nvfp4(g)
    factor = torch.tensor([1234.5])
    stored = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": factor}
    settings = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    ours = values({f"m.{k}": v for k, v in stored.items()}, settings)
    scheme = compressed_scheme("NVFP4")
    theirs = packer.decompress(dict(stored), scheme)["weight"]
    assert theirs.dtype == torch.bfloat16
    rounded = torch.from_numpy(ours.view(np.float32).copy()).bfloat16()
    assert np.array_equal(bits(rounded), bits(theirs))
    # And before it rounds to bfloat16, to the last bit.
    unpack = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers").unpack_fp4_from_uint8
    codes = unpack(packed, 48, 128, dtype=torch.float32)
    exact = lifecycle.dequantize(codes, scales.float(), args=scheme.weights, global_scale=factor, dtype=torch.float32)
    assert np.array_equal(ours, bits(exact))


def test_nvfp4_of_modelopt_multiplies_by_its_second_scale(values):
    qtensor = pytest.importorskip("modelopt.torch.quantization.qtensor")
    g = seeded()
    packed, scales = nvfp4(g)
    factor = torch.tensor(0.00081)
    stored = {"m.weight": packed, "m.weight_scale": scales, "m.weight_scale_2": factor}
    ours = values(stored, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    tensor = qtensor.NVFP4QTensor(torch.Size([48, 128]), torch.float32, packed)
    theirs = bits(tensor.dequantize(torch.float32, scale=scales, double_scale=factor, block_sizes={-1: 16}))
    # modelopt's table has no negative zero; here code 8 is one. Only that sign differs.
    assert np.array_equal(ours.view(np.float32), theirs.view(np.float32))
    differing = np.flatnonzero(ours != theirs)
    assert 0 < differing.size < ours.size / 10 and (ours[differing] == 1 << 31).all()
