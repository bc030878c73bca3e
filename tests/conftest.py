"""Options and shared models. Nothing here skips: a binary or a model file that is missing is an error."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recorders" / "python" / "src"))

import tiny  # noqa: E402
from firstdiff_binary import Firstdiff  # noqa: E402
from gguf_models import GgufModel  # noqa: E402


def pytest_addoption(parser):
    group = parser.getgroup("firstdiff")
    group.addoption("--firstdiff", default=str(ROOT / "target" / "release" / "firstdiff"), help="the binary under test")
    group.addoption("--models", default=None, help="folder with smollm2.gguf, qwen.gguf and gemma.gguf")
    group.addoption("--table", default=None, help="file to write the measured logit differences to")


def pytest_configure(config):
    config.addinivalue_line("markers", "real_model: needs --models")
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def without_gradients():
    """One switch for the whole run: recorded values are constants, and in-place planted bugs need no graph."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def firstdiff(request):
    binary = Path(request.config.getoption("--firstdiff")).resolve()
    if not binary.is_file():
        pytest.fail(f"{binary} is not there; build it with `cargo build --release` or name it with --firstdiff")
    return Firstdiff(binary)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Name of a tiny configuration -> its checkpoint folder, made once."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def folder(name):
        if name not in made:
            made[name] = tiny.make(tiny.BY_NAME[name], root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def models(request):
    folder = request.config.getoption("--models")
    if folder is None:
        pytest.fail("--models DIR is needed: the folder with smollm2.gguf, qwen.gguf and gemma.gguf")
    return Path(folder).resolve()


def _gguf(models, name):
    path = models / name
    if not path.is_file():
        pytest.fail(f"{path} is not there")
    return GgufModel(path)


@pytest.fixture(scope="session")
def smollm2(models):
    return _gguf(models, "smollm2.gguf")


@pytest.fixture(scope="session")
def qwen(models):
    return _gguf(models, "qwen.gguf")


@pytest.fixture(scope="session")
def gemma(models):
    return _gguf(models, "gemma.gguf")


@pytest.fixture(scope="session")
def smollm2_in_transformers(smollm2):
    """SmolLM2 from its GGUF by (dtype, attention); the last one stays loaded."""
    kept = {}

    def load(dtype, attention):
        if (dtype, attention) not in kept:
            kept.clear()
            kept[dtype, attention] = smollm2.to_transformers(dtype, attention)
        return kept[dtype, attention]

    return load


@pytest.fixture(scope="session")
def table(request):
    """Rows of measured numbers; written to --table, and always to the terminal."""
    rows = []
    yield rows
    lines = [f"{'config':32} {'dtype':5} {'prefill':>9} {'decode':>9} {'chunked':>9} {'steps':>9}"]
    lines += [f"{name:32} {dtype:5} " + " ".join(f"{v:9.2e}" for v in values) for name, dtype, *values in sorted(rows)]
    text = "\n".join(lines)
    if request.config.getoption("--table"):
        Path(request.config.getoption("--table")).write_text(text + "\n")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + text)
