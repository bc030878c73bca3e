"""The checkpoints that engines on GPUs are measured with: quantised as declared, with values of a realistic size."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "crates" / "dev" / "python" / "cuda"
sys.path.insert(0, str(SCRIPTS))

import checkpoints  # noqa: E402
import gguf_file  # noqa: E402
import quantise  # noqa: E402
from shapes import MODELS  # noqa: E402

# Half a step of a uniform quantisation of normal values to so many levels, as a fraction of their size, doubled: the
# largest of a block decides the step, and scales are rounded themselves.
STEP = {"Q8_0": 0.012, "Q6_K": 0.05, "Q5_K": 0.09, "Q5_0": 0.10, "Q4_K": 0.16, "Q4_1": 0.17, "Q4_0": 0.20}


@pytest.mark.parametrize("kind", STEP)
def test_an_encoder_writes_what_the_gguf_package_reads(kind):
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(3)) * 0.04
    x[5] = 0
    x[6] = x[6].abs()
    data = quantise.encode(x, kind).numpy()
    back = gguf.quants.dequantize(data, getattr(gguf.GGMLQuantizationType, kind))
    assert np.isfinite(back).all() and (back[5] == 0).all()
    error = np.sqrt(((back - x.numpy()) ** 2).mean() / (x.numpy() ** 2).mean())
    assert error < STEP[kind], error


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("measured")
    return lambda name, file_format: checkpoints.make(root, name, file_format, tiny=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_reads_them_and_agrees_with_transformers(name, made, firstdiff, tmp_path):
    from tiny import load

    ids = [int(t) for t in torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(1))]
    folder = made(name, "bf16")
    expected = load(folder)(torch.tensor([ids])).logits[0].numpy()
    assert 2.0 < expected.std() < 4.5, "lively, as in a trained model"
    [step] = firstdiff.trace(folder, tmp_path / "trace", ids)
    assert np.abs(step["logits"].numpy() - expected).max() < 2e-4
    for file_format in gguf_file.FORMATS:
        [step] = firstdiff.trace(made(name, file_format), tmp_path / file_format, ids, "--taps", "logits")
        close = np.corrcoef(step["logits"].numpy().ravel(), expected.ravel())[0, 1]
        assert close > (0.99 if file_format == "q8_0" else 0.6), (file_format, close)
