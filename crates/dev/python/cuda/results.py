"""Running programs, and collecting what they say: results.json and results.md grow as parts finish."""

import json
import os
import statistics
import subprocess
import time
from pathlib import Path


def median(values):
    return statistics.median(values) if values else None


def library_path():
    """Folders in which NVRTC and cuBLAS lie: those of torch's packages, and of a CUDA toolkit."""
    folders = [os.environ.get("LD_LIBRARY_PATH", "")]
    try:
        import nvidia

        for root in nvidia.__path__:
            folders += [str(p) for p in Path(root).glob("*/lib")] + [str(p) for p in Path(root).glob("*/*/lib")]
    except ImportError:
        pass
    folders += ["/usr/local/cuda/lib64"]
    return ":".join(f for f in folders if f)


def call(command, timeout=300, ok=(0,)):
    """Runs a program; its exit code, output, errors and seconds. Raises where the exit code is none of `ok`."""
    command = [str(c) for c in command]
    environment = os.environ | {"LD_LIBRARY_PATH": library_path()}
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    shown = " ".join(c if len(c) < 200 else c[:60] + "..." for c in command)
    if ok is not None and done.returncode not in ok:
        raise RuntimeError(f"exit {done.returncode}: {shown}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return {
        "command": shown,
        "code": done.returncode,
        "stdout": done.stdout,
        "stderr": done.stderr,
        "seconds": time.time() - started,
    }


class Results:
    """What was measured so far, on disk after every part."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.values = {}

    def put(self, part, value):
        self.values[part] = value
        (self.folder / "results.json").write_text(json.dumps(self.values, indent=1, default=str))
        (self.folder / "results.md").write_text(self.markdown())

    def markdown(self):
        lines = ["# Results", ""]
        for part, value in self.values.items():
            lines += [f"## {part}", ""]
            rows = value if isinstance(value, list) else value.get("rows") if isinstance(value, dict) else None
            if rows and all(isinstance(r, dict) for r in rows):
                keys = list(dict.fromkeys(k for row in rows for k in row))
                lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
                cell = lambda v: f"{v:.5g}" if isinstance(v, float) else str(v).replace("\n", " ")[:300]
                lines += ["| " + " | ".join(cell(row.get(k, "")) for k in keys) + " |" for row in rows]
            if isinstance(value, dict):
                lines += [f"- {k}: {v}"[:1500] for k, v in value.items() if k != "rows"]
            elif not rows:
                lines.append(str(value))
            lines.append("")
        return "\n".join(lines) + "\n"
