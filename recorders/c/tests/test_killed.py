"""Writers killed at random times, by SIGKILL: every trace reads, and holds whole steps only.

`--kills` says how often each, `--seed` is that of the times.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import HERE, about, compiled, read_step

sys.path.insert(0, str(HERE.parents[1] / "python" / "src"))
LONGEST = 0.08  # seconds: dozens of steps


def start_python(folder, acknowledge):
    """The Python writer in a child that has everything imported, so that it is killed while it writes, not while it starts."""
    from firstdiff.trace import Writer

    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        writer = Writer(folder, producer={"name": "endless"})
        for step in range(5000):
            taps = {f"layers.{n}.out": np.full((1, 10000 * (n + 2)), step + n, np.float32) for n in range(4)}
            writer.step([step], taps)
            os.write(acknowledge, b"s")
    finally:
        os._exit(1)  # never back into pytest


def start_c(program, writer_bytes):
    def start(folder, acknowledge):
        return subprocess.Popen([program, folder, str(writer_bytes)], stdout=acknowledge).pid

    return start


def kill_after(start, folder, delay):
    """Steps that the writer said were done."""
    readable, writable = os.pipe()
    child = start(folder, writable)
    os.close(writable)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
    done = 0
    while said := os.read(readable, 65536):
        done += len(said)
    os.close(readable)
    return done


def whole_steps(folder, firstdiff):
    """How many steps there are, each read to its last byte, and whether a step or trace.json was under way."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    begun = [name for name in names if name.endswith(".tmp")]
    steps = [name for name in names if name.startswith("step-") and name not in begun]
    if "trace.json" not in names:
        assert steps == [], "steps without a trace"
        return 0, bool(begun)
    assert sorted([*begun, *steps, "trace.json"]) == names
    assert about(folder)["complete"] is False
    assert steps == [f"step-{number:06}.safetensors" for number in range(len(steps))]
    for number, name in enumerate(steps):
        step = read_step(folder / name)
        assert step.keys() == {"token_ids", *(f"layers.{n}.out" for n in range(4))}
        assert step["token_ids"].tolist() == [number]
        for n in range(4):
            tap = step[f"layers.{n}.out"]
            assert tap.shape == (1, 10000 * (n + 2)) and (tap == number + n).all()
    if steps:
        done = subprocess.run([firstdiff, "diff", folder, folder], capture_output=True, text=True)
        assert done.returncode == 0 and "identical" in done.stdout, done.stdout + done.stderr
    return len(steps), bool(begun)


@pytest.mark.parametrize("writer", ["c", "c with a writer thread", "python"])
def test_every_trace_of_a_killed_writer_reads(writer, request, tmp_path, tmp_path_factory):
    if writer == "python":
        start = start_python
    else:
        program = compiled(tmp_path_factory.mktemp("endless"), "c99", HERE / "endless.c")
        start = start_c(program, 1 << 20 if "thread" in writer else 0)
    firstdiff = Path(request.config.getoption("--firstdiff")).resolve()
    times = random.Random(request.config.getoption("--seed"))
    kills, within, whole, before = request.config.getoption("--kills"), 0, 0, 0
    for _ in range(kills):
        delay = LONGEST * times.random() ** 3  # often within the first milliseconds, where the trace is made
        done = kill_after(start, tmp_path / "t", delay)
        steps, begun = whole_steps(tmp_path / "t", firstdiff)
        assert "thread" in writer or steps >= done, "a step that was said to be written is not there"
        within += begun
        whole += steps
        before += steps == 0
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{writer}: killed {kills} times, {within} within a step, {before} before the first was whole; {whole} whole steps")
    assert within and whole


def test_a_step_cut_short_or_missing_would_be_noticed(request, tmp_path):
    from firstdiff.trace import Writer

    firstdiff = Path(request.config.getoption("--firstdiff")).resolve()
    writer = Writer(tmp_path / "t", producer={"name": "endless"})
    for step in range(3):
        writer.step([step], {f"layers.{n}.out": np.full((1, 10000 * (n + 2)), step + n, np.float32) for n in range(4)})
    assert whole_steps(tmp_path / "t", firstdiff) == (3, False)
    second = tmp_path / "t" / "step-000001.safetensors"
    kept = second.read_bytes()
    second.write_bytes(kept[:-1])
    with pytest.raises(Exception, match="(?i)header|buffer|size"):
        whole_steps(tmp_path / "t", firstdiff)
    second.write_bytes(kept[:-1] + b"x")
    with pytest.raises(AssertionError):
        whole_steps(tmp_path / "t", firstdiff)
    second.unlink()
    with pytest.raises(AssertionError):
        whole_steps(tmp_path / "t", firstdiff)
