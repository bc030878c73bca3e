"""Runs the binary under test, and reads what it writes."""

import json
import resource
import subprocess
from dataclasses import dataclass

from safetensors.torch import load_file

AGREES, DIVERGES, ERROR, UNMEASURED = 0, 1, 2, 3


@dataclass
class Result:
    command: list
    code: int
    stdout: str
    stderr: str

    def __str__(self):
        return f"$ {' '.join(map(str, self.command))}\nexit {self.code}\n{self.stdout[-6000:]}\n{self.stderr[-4000:]}"

    @property
    def json(self):
        return json.loads(self.stdout)

    @property
    def findings(self):
        return self.json["findings"]


class Firstdiff:
    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *args, timeout=300, memory=None):
        """`memory` bounds the address space in bytes, so that an absurd allocation fails instead of succeeding lazily."""
        limit = (lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))) if memory else None
        command = [str(self.binary), *map(str, args)]
        done = subprocess.run(command, capture_output=True, timeout=timeout, preexec_fn=limit)
        result = Result(command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        assert "panicked" not in result.stderr, str(result)
        assert done.returncode in (AGREES, DIVERGES, ERROR, UNMEASURED), str(result)
        return result

    def check(self, trace, model, *args, **limits):
        return self("check", trace, "--model", model, "--format", "json", *args, **limits)

    def trace(self, model, out, ids, *args, **limits):
        """Records the reference; returns its steps."""
        result = self("trace", model, out, "--tokens", ",".join(map(str, ids)), *args, **limits)
        assert result.code == 0, str(result)
        return read_steps(out)

    def run(self, model, prompt, *args, **limits):
        given = [] if prompt is None else [prompt]
        result = self("run", model, *given, "--format", "json", *args, **limits)
        assert result.code == 0, str(result)
        return result.json


def read_steps(trace):
    return [load_file(path) for path in sorted(trace.glob("step-*.safetensors"))]
