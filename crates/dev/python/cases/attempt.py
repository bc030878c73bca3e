"""One way to make a case: which engine, which fault, which arithmetic, which taps."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from engine.record import kind_of


@dataclass(frozen=True)
class Attempt:
    """`record(trace)` writes the trace and returns the model that it is checked against."""

    title: str
    arithmetic: str
    first: tuple  # kinds of taps of which one must be found wrong first
    wrong: str  # what the engine does
    record: Callable[[Path], Path]

    def result(self, firstdiff, trace):
        """What firstdiff says of it; None where the finding is elsewhere."""
        try:
            model = self.record(trace)
            command = [firstdiff, "check", trace, "--model", model, "--format", "json", "--threads", "1"]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            findings = json.loads(done.stdout)["findings"]
        except Exception as error:
            print(f"{self.title} {self.arithmetic}: {type(error).__name__}: {error}")
            return None
        if not findings or kind_of(findings[0]["tap"]) not in self.first:
            return None
        cause = findings[0]["cause"]
        names = [cause["id"], *(equal["id"] for equal in cause["equal"])] if cause else []
        return {"names": names, "tap": findings[0]["tap"], "step": findings[0]["step"], "model": model}
