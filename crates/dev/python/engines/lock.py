"""Resolves what an engine takes into a lock: name==version and the sha256 of the file that this platform takes.

    python lock.py locks/vllm.in        # writes locks/vllm.lock

Nothing is installed. A line `alone NAME==VERSION` takes a package without what it requires: vLLM's CPU wheel asks for a
build of torch that the package index does not have. The index is whatever pip is set up to use, and is not written down.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def resolve(packages: list[str], *options: str) -> dict[str, str]:
    """name -> its line in a lock."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "--quiet", "install", "--dry-run", "--ignore-installed", *options]
        subprocess.run([*command, "--report", str(report), *packages], check=True)
        return lines(json.loads(report.read_text()))


def lines(report: dict) -> dict[str, str]:
    found = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        found[name] = f"{name}=={item['metadata']['version']} --hash=sha256:{digest}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", type=Path)
    source: Path = parser.parse_args().names
    wanted = [line for line in source.read_text().splitlines() if line and not line.startswith("#")]
    alone = [line.removeprefix("alone ") for line in wanted if line.startswith("alone ")]
    found = resolve([line for line in wanted if not line.startswith("alone ")])
    if alone:
        found.update(resolve(alone, "--no-deps"))
    text = f"# Made from {source.name} by `lock.py`. Installed without dependencies: this is all of it.\n"
    source.with_suffix(".lock").write_text(text + "".join(f"{line}\n" for _, line in sorted(found.items())))


if __name__ == "__main__":
    main()
