import json
from pathlib import Path

import pytest
from safetensors import safe_open

MODELS = {"smollm2": "smollm2.gguf", "qwen": "qwen.gguf"}


def pytest_addoption(parser):
    parser.addoption("--models", help="folder that holds " + " and ".join(MODELS.values()))


@pytest.fixture(scope="session")
def model_file(request):
    """Path of a real GGUF file. A missing one fails the test: a check that silently did not run is no check."""

    def find(name):
        folder = request.config.getoption("--models")
        if folder is None:
            pytest.fail("this test needs real model files: run pytest with --models DIR, which `cargo dev test` fills")
        path = Path(folder) / MODELS[name]
        if not path.is_file():
            pytest.fail(f"{path} is missing; `cargo dev test` fetches it")
        return str(path)

    return find


class Trace:
    """A trace read back with the official safetensors library."""

    def __init__(self, path):
        self.path = Path(path)
        self.json = json.loads((self.path / "trace.json").read_text())
        self.files = sorted(self.path.glob("step-*.safetensors"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with safe_open(self.files[index], "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}

    def __iter__(self):
        return (self[index] for index in range(len(self)))


@pytest.fixture
def read_trace():
    return Trace
