"""Dequantised values equal those of the `gguf` package bit for bit, for every block format."""

import subprocess

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: E402

# Where each format's block holds its binary16 scales.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
    "NVFP4": [],
}
BLOCKS = 20_000


def random_blocks(name, rng):
    """Blocks of random bytes, with every kind of finite scale: usual, subnormal, zero of both signs, huge."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for at in SCALES[name]:
        usual = (rng.normal(size=BLOCKS) * 0.01).astype(np.float16).view(np.uint16)
        anything = rng.integers(0, 1 << 16, BLOCKS, dtype=np.uint16)
        anything = np.where((anything & 0x7C00) == 0x7C00, anything & 0x83FF, anything)
        scale = np.where(np.arange(BLOCKS) % 2 == 0, usual, anything)
        blocks[:, at : at + 2] = scale.astype("<u2").view(np.uint8).reshape(BLOCKS, 2)
    return blocks


def dequantise(program, name, blocks):
    done = subprocess.run([program, name], input=blocks.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, "<u4")


@pytest.mark.parametrize("name", SCALES)
def test_random_blocks_are_equal_bit_for_bit(example, name):
    blocks = random_blocks(name, np.random.default_rng(7))
    with np.errstate(over="ignore"):
        theirs = gguf.quants.dequantize(blocks, GGMLQuantizationType[name])
    theirs = np.ascontiguousarray(theirs, dtype="<f4").view(np.uint32).ravel()
    ours = dequantise(example("dequant"), name, blocks)
    assert ours.shape == theirs.shape
    differing = np.flatnonzero(ours != theirs)
    assert differing.size == 0, f"{differing.size} values differ, the first at {differing[:5]}"


def test_every_tensor_of_a_real_model_is_equal_bit_for_bit(example, gguf_model):
    reader = gguf.GGUFReader(gguf_model)
    listed = subprocess.run([example("tensors"), gguf_model], capture_output=True, check=True, text=True).stdout
    names = {line.rsplit("(", 1)[1].rstrip(")"): line.split(" ")[0] for line in listed.splitlines() if "(" in line}
    field = {key: reader.fields[key].contents() for key in reader.fields if ".attention.head_count" in key}
    llama = reader.fields["general.architecture"].contents() == "llama"
    # One layer of each kind is enough: the others differ in numbers only.
    chosen = [t for t in reader.tensors if t.name.startswith(("blk.0.", "blk.7.", "output"))]
    assert len(chosen) > 15
    for tensor in chosen:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("<f4")
        if llama and tensor.name.split(".")[2:3] in (["attn_q"], ["attn_k"]):
            heads = field["llama.attention.head_count" + ("_kv" if ".attn_k." in tensor.name else "")]
            halves = theirs.reshape(heads, -1, 2, *theirs.shape[1:])
            theirs = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(theirs.shape)
        done = subprocess.run([example("tensors"), gguf_model, names[tensor.name]], capture_output=True, check=True)
        assert done.stdout == theirs.tobytes(), tensor.name
