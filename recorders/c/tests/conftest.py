"""Builds the test program in every way in which the header is used, and reads what it writes."""

import json
import os
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

HERE = Path(__file__).parent
WARNINGS = ["-pedantic", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]
# name -> compiler and flags. CC and CXX name other compilers.
BUILDS = {
    "c99": ["CC", "-std=c99"],
    "c++17": ["CXX", "-x", "c++", "-std=c++17"],
    "c99-without-threads": ["CC", "-std=c99", "-DFIRSTDIFF_NO_THREADS"],
    "address-and-undefined": ["CC", "-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["CC", "-std=c99", "-fsanitize=thread"],
}


def pytest_addoption(parser):
    root = HERE.parents[2]
    parser.addoption("--firstdiff", default=str(root / "target" / "release" / "firstdiff"), help="the binary under test")
    parser.addoption("--models", help="not needed here")
    parser.addoption("--kills", type=int, default=200, help="how often each writer is killed")
    parser.addoption("--seed", type=int, default=0, help="of the times at which writers are killed")


def compiled(folder, build, source, *flags):
    """The program made from a source file. A warning is an error."""
    compiler, *build = BUILDS[build]
    program = folder / source.stem
    default = {"CC": "cc", "CXX": "c++"}[compiler]
    command = [os.environ.get(compiler, default), *build, *WARNINGS, *flags, str(source), "-o", str(program), "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"$ {' '.join(command)}\n{done.stderr}"
    return program


class Recorder:
    """The test program as one build has it."""

    def __init__(self, program):
        self.program = program

    def __call__(self, case, folder, *arguments, code=0, writer=False, file_limit=None, **environment):
        if writer:
            environment["TEST_WRITER"] = str(writer)
        if file_limit:
            environment["TEST_FILE_LIMIT"] = str(file_limit)
        # no core file where a process is killed on purpose
        done = subprocess.run(
            [self.program, case, folder, *map(str, arguments)], capture_output=True, text=True, timeout=300,
            env={**os.environ, **environment}, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        )
        assert done.returncode == code, f"{case}: exit {done.returncode}\n{done.stderr[-4000:]}"
        self.stdout = done.stdout
        return done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    made = {}

    def program(build):
        if build not in made:
            made[build] = Recorder(compiled(tmp_path_factory.mktemp(build), build, HERE / "record.c"))
        return made[build]

    return program


@pytest.fixture(params=BUILDS)
def record(request, built):
    return built(request.param)


def about(folder):
    return json.loads((folder / "trace.json").read_text())


def read_step(path):
    """A step's tensors, read with the official library. bfloat16, which numpy has not, as its bits."""
    with safe_open(path, "np") as file:
        names = set(file.keys())
        short = {name for name in names if file.get_slice(name).get_dtype() == "BF16"}
        tensors = {name: file.get_tensor(name) for name in names - short}
    raw = path.read_bytes() if short else b""
    header = 8 + int.from_bytes(raw[:8], "little")
    for name in short:
        entry = json.loads(raw[8:header])[name]
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(raw[header + begin : header + end], np.uint16).reshape(entry["shape"])
    return tensors


def steps(folder):
    """Every step of a trace; nothing else may be in its folder."""
    names = sorted(path.name for path in folder.iterdir())
    files = [f"step-{number:06}.safetensors" for number in range(len(names) - 1)]
    assert names == [*files, "trace.json"]
    return [read_step(folder / file) for file in files]
