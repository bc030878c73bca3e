"""Options of the tests that compare this crate with other programs' readings of the same files.

    cargo build --release -p firstdiff-checkpoint --examples
    pytest crates/checkpoint/tests/python --firstdiff-target target/release --models MODELS

MODELS is a folder with smollm2.gguf and qwen.gguf. A test that lacks what it needs is skipped, and says so.
"""

import pathlib

import pytest


def _add(parser, name, help_text):
    try:
        parser.addoption(name, type=pathlib.Path, help=help_text)
    except ValueError:  # another conftest of this run has the option already
        pass


def pytest_addoption(parser):
    _add(parser, "--firstdiff-target", "cargo's release folder, with the examples built")
    _add(parser, "--models", "folder with smollm2.gguf and qwen.gguf")


@pytest.fixture(scope="session")
def example(request):
    """Gives the path of a built example by its name."""
    target = request.config.getoption("--firstdiff-target")
    if target is None:
        pytest.skip("--firstdiff-target is not given")

    def path(name):
        program = pathlib.Path(target) / "examples" / name
        if not program.exists():
            pytest.fail(f"{program} is not built: cargo build --release -p firstdiff-checkpoint --examples")
        return program

    return path


@pytest.fixture(scope="session", params=["smollm2.gguf", "qwen.gguf"])
def gguf_model(request):
    """Each of the real models in turn."""
    models = request.config.getoption("--models")
    if models is None:
        pytest.skip("--models is not given")
    path = pathlib.Path(models) / request.param
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
