"""Options of the tests that compare this crate with transformers.

    cargo build --release -p firstdiff-engine --examples
    pytest crates/engine/tests/python --firstdiff-target target/release
"""

import pathlib

import pytest


def pytest_addoption(parser):
    for name, text in (("--firstdiff-target", "cargo's release folder, with the examples built"), ("--models", "unused")):
        try:
            parser.addoption(name, type=pathlib.Path, help=text)
        except ValueError:  # another conftest of this run has the option already
            pass


@pytest.fixture(scope="session")
def example(request):
    """Gives the path of a built example by its name."""
    target = request.config.getoption("--firstdiff-target")
    if target is None:
        pytest.fail("--firstdiff-target is not given")

    def path(name):
        program = pathlib.Path(target) / "examples" / name
        if not program.exists():
            pytest.fail(f"{program} is not built: cargo build --release -p firstdiff-engine --examples")
        return program

    return path
