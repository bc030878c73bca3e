"""Where an engine's runs go: for each one a folder with `model`, `trace` and, where known, `declared.json`.

Each `record_ENGINE.py` is called as `record_ENGINE.py OUT [--match TEXT]` and prints `run NAME` for each.

`declared.json` is the `arithmetic` that a recorder of this engine would write. The trace itself declares nothing, so
that `firstdiff check` has to find out. `expected`, where it is there, is the verdict of an engine that is not right.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from firstdiff.trace import Writer


class Run:
    """One run of an engine: a model, a trace, and what the engine does arithmetically."""

    def __init__(self, out: Path, name: str) -> None:
        self.folder = out / name
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        self.model = self.folder / "model"
        self.trace = self.folder / "trace"

    def writer(self, engine: str, version: str, **metadata: Any) -> Writer:
        """A trace without `arithmetic`."""
        return Writer(self.trace, producer={"name": engine, "version": version}, **metadata)

    def declare(self, arithmetic: Optional[Mapping[str, Any]]) -> None:
        """What the engine does, for a second check of the same trace."""
        if arithmetic:
            (self.folder / "declared.json").write_text(json.dumps(dict(arithmetic), indent=1) + "\n")

    def declare_apart(self) -> None:
        """Moves what the recorder declared out of the trace: it is checked with nothing declared, and then with that."""
        about = self.trace / "trace.json"
        said = json.loads(about.read_text())
        self.declare(said.pop("arithmetic", None))
        about.write_text(json.dumps(said, indent=1) + "\n")

    def is_wrong(self, at: str = "") -> None:
        """The engine is known to be wrong in this run, which must be found: at the tap `at`, where that is given."""
        (self.folder / "expected").write_text(f"diverges {at}".strip() + "\n")


def command(engine: str, model: Path, tiny: Any, one: Run, *options: str) -> None:
    """Records a run with the recorder's own command."""
    said = ["--tokens", ",".join(map(str, tiny.prompt(12))), "--new", "3", "-o", str(one.trace), *options]
    run = [sys.executable, "-m", f"firstdiff.{engine}", str(model), *said]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "4 steps" not in done.stdout and "3 steps" in done.stdout, done.stdout
    one.declare_apart()


def arguments(about: str) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the runs")
    parser.add_argument("--match", default="", help="only runs whose name contains this")
    return parser


def run_all(
    runs: Mapping[str, Mapping[str, Any]], match: str, run: Callable[..., None], out: Optional[Path] = None
) -> None:
    """`run(name, **settings)` for those that match, or the run's own function, `run(out, name, **settings)`."""
    for name, settings in runs.items():
        if match in name:
            settings = dict(settings)
            own = settings.pop("run", None)
            if own is None:
                run(name, **settings)
            else:
                own(out, name, **settings)
            print("run", name, flush=True)
