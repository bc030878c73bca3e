"""`python -m firstdiff`: the program that was installed with this package."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def program():
    """Its path: among the scripts of this environment, else the first on PATH; None where there is none."""
    name = "firstdiff.exe" if os.name == "nt" else "firstdiff"
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.exists() else shutil.which(name)


def main():
    path = program()
    if path is None:
        print("error: no firstdiff program in this environment or on PATH: reinstall the package, or build it with cargo",
              file=sys.stderr)
        return 2
    os.execv(path, [path, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
