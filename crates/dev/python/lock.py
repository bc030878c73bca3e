"""Resolves a list of packages into a lock: name==version with the sha256 of the file that this platform takes.

    python lock.py NAMES.in OUT.lock                     # what cannot be had as a wheel goes into OUT-compiled.lock
    python lock.py --beside OTHER.lock NAMES.in OUT.lock # without what the other lock has in the same version

`cargo dev lock` runs it. Nothing is installed. The index is whatever pip is set up to use, and is not written down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Release(NamedTuple):
    name: str
    version: str
    sha256: str
    wheel: bool


def resolve(names: Path, *options: str) -> list[Release]:
    """What pip would install into an empty environment of this interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--dry-run",
                   "--ignore-installed", *options, "--report", str(report), "--requirement", str(names)]
        # files that lie about on this machine are not what the index has
        environment = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
        subprocess.run(command, check=True, env=environment)
        return sorted(map(_release, json.loads(report.read_text())["install"]))


def _release(item: dict) -> Release:
    about, file = item["metadata"], item["download_info"]
    return Release(_normal(about["name"]), about["version"], file["archive_info"]["hashes"]["sha256"], file["url"].endswith(".whl"))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read(lock: Path) -> set[tuple[str, str]]:
    """The names and versions of a lock, or of what `pip freeze` prints."""
    found = re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    return {(_normal(name), version) for name, version in found}


def write(lock: Path, source: Path, releases: list[Release]) -> None:
    system = f"{platform.system()} {platform.machine()}, CPython {sys.version_info[0]}.{sys.version_info[1]}"
    lines = [f"# Made from {source.name} by `cargo dev lock`, for {system}.\n"]
    lines += [f"{r.name}=={r.version} --hash=sha256:{r.sha256}\n" for r in releases]
    lock.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="a lock whose packages are there already")
    parser.add_argument("--no-deps", action="store_true", help="the packages named alone: only their files are used")
    parser.add_argument("names", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    there = read(arguments.beside) if arguments.beside else set()
    options = ["--no-deps"] if arguments.no_deps else []
    releases = [r for r in resolve(arguments.names, *options) if (r.name, r.version) not in there]
    compiled = [r for r in releases if not r.wheel]
    write(arguments.out, arguments.names, [r for r in releases if r.wheel])
    if compiled:
        write(arguments.out.with_name(arguments.out.stem + "-compiled.lock"), arguments.names, compiled)


if __name__ == "__main__":
    main()
